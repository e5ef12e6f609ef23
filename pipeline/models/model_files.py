"""Where a model's files are, in a folder of the registry and in one that has them all at its top, as `train` writes it.

Beside the Keras model travel decision.json, the served form (openvino.xml, openvino.bin, golden.npz), what concrete the
model knows (known_concrete.npz), what it has learned from (learned_from.parquet) and its reference (reference.parquet).
"""

from pathlib import Path

MODEL_FILE = "model.keras"
MLMODEL_FILE = "MLmodel"  # MLflow's own, by which a folder of the registry is known
EXTRA_FILES = "extra_files"  # MLflow's folder of what travels beside a model


def keras_file(folder: Path) -> Path:
    """Return the file of the Keras model in the folder of a model."""
    return folder / "data" / MODEL_FILE if _is_registry_folder(folder) else folder / MODEL_FILE


def extra_files(folder: Path) -> Path:
    """Return where, in the folder of a model, the files are that travel beside the Keras model."""
    return folder / EXTRA_FILES if _is_registry_folder(folder) else folder


def _is_registry_folder(folder: Path) -> bool:
    return (folder / MLMODEL_FILE).exists()
