"""Paths of a model's files, in a folder fetched from the registry or in one that `train` wrote, which is flat.

Beside the Keras model there are decision.json, the served model (openvino.xml, openvino.bin, golden.npz), the
out-of-distribution detector (known_concrete.npz), the list of training images (learned_from.parquet), the reference
(reference.parquet) and the tracer of crack lines (tracer/).
"""

from pathlib import Path

MODEL_FILE = "model.keras"
TRACER_FILE = Path(__file__).with_name("tracer.xml")  # of the tracer that ships
TRACER_WEIGHTS = TRACER_FILE.with_suffix(".bin")
TRACER_FOLDER = "tracer"  # of a registered model, beside its served graph
TRACER_HASH = "tracer.sha256"  # in it where it was fetched, as a tag of the version has it
TRACER_FILES = tuple(f"{TRACER_FOLDER}/{name}" for name in (TRACER_FILE.name, TRACER_WEIGHTS.name, TRACER_HASH))
# Folders in the registry; the second in versions registered with MLflow's flavour for Keras, as all once were.
SERVED, SERVED_BEFORE = "artifacts/served", "extra_files"


def keras_file(folder: Path) -> Path:
    """Return the path of the Keras model in the folder of a model."""
    registered = (folder / "artifacts" / MODEL_FILE, folder / "data" / MODEL_FILE)
    return next((path for path in registered if path.exists()), folder / MODEL_FILE)


def served_folder(folder: Path) -> Path:
    """Return the folder, in the folder of a model, of the files beside the Keras model."""
    return next((folder / name for name in (SERVED, SERVED_BEFORE) if (folder / name).is_dir()), folder)
