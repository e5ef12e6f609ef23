"""The starter model as a served model, built once and kept: converting it takes TensorFlow and seconds."""

import hashlib
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pipeline
from pipeline.files import locked, replacing_folder, write_text
from pipeline.inference.out_of_distribution import DETECTOR_FILE
from pipeline.inference.served import SERVED_FILES
from pipeline.models.model_files import TRACER_WEIGHTS
from pipeline.project import project_root

STARTER_FILE = Path(__file__).with_name("starter.npz")
STARTER_DETECTOR = Path(__file__).with_name("starter_detector.npz")
KEY_FILE = "built-from.txt"
KEPT_IN_PROJECT = Path("data/serving/starter")  # the Makefile hands it to the API


def served_starter(scratch: Path) -> Path:
    """Return a folder with the starter as a served model, with golden images and its out-of-distribution detector.

    It is kept in the project and, outside one, in the user's cache. Where neither can be written, it is built in the
    new folder `scratch`. Raises CracksError if it must be built, and the package of its backbone is missing.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    kept = [cache / "concrete-cracks" / f"starter-{_built_from()[:16]}"]  # projects of several versions share it
    if (project_root() / ".dvc").is_dir():
        kept.insert(0, project_root() / KEPT_IN_PROJECT)
    for folder in kept:
        if _is_current(folder):
            return folder
    for folder in kept:
        with suppress(OSError):  # such as a read-only or full disk
            keep_starter(folder)
            return folder
    keep_starter(scratch)
    return scratch


def keep_starter(folder: Path) -> None:
    """Build the served starter in `folder`, unless it is there; of several processes at once, one builds it."""
    with locked(folder.with_name(f".{folder.name}.lock")):
        if _is_current(folder):
            return
        from pipeline.inference.starter import write_served_starter  # imports TensorFlow

        with replacing_folder(folder) as partial:
            write_served_starter(partial)
            write_text(partial / KEY_FILE, _key(partial))


def _is_current(folder: Path) -> bool:
    """Return whether `folder` has an undamaged starter that was built from the files and versions of this process."""
    try:
        return (folder / KEY_FILE).read_text(encoding="utf-8") == _key(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _key(folder: Path) -> str:
    built = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (*SERVED_FILES, DETECTOR_FILE))
    return "\n".join([_built_from(), *built, ""])


def _built_from() -> str:
    """Return a hash of the files and versions that the served starter is built from."""
    versions = f"concrete-cracks {pipeline.__version__}, openvino {version('openvino')}".encode()
    files = (STARTER_FILE, STARTER_DETECTOR, TRACER_WEIGHTS)
    return hashlib.sha256(b"".join([versions, *(file.read_bytes() for file in files)])).hexdigest()
