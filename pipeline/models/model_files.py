"""Paths of a model's files, in a folder fetched from the registry or in one that `train` wrote, which is flat.

Beside the Keras model there are decision.json, the served model (openvino.xml, openvino.bin, golden.npz), the
out-of-distribution detector (known_concrete.npz), the list of training images (learned_from.parquet) and the reference
(reference.parquet).
"""

from pathlib import Path

MODEL_FILE = "model.keras"
MLMODEL_FILE = "MLmodel"  # written by MLflow; marks a folder fetched from the registry
EXTRA_FILES = "extra_files"  # MLflow's folder for files beside a model


def keras_file(folder: Path) -> Path:
    """Return the path of the Keras model in the folder of a model."""
    return folder / "data" / MODEL_FILE if _is_registry_folder(folder) else folder / MODEL_FILE


def extra_files(folder: Path) -> Path:
    """Return the folder, in the folder of a model, of the files beside the Keras model."""
    return folder / EXTRA_FILES if _is_registry_folder(folder) else folder


def _is_registry_folder(folder: Path) -> bool:
    return (folder / MLMODEL_FILE).exists()
