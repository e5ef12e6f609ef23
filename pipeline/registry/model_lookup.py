"""Find a model by alias, version, folder or name, ready to be served."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.errors import CracksError
from pipeline.inference.kept_starter import served_starter
from pipeline.inference.out_of_distribution import DETECTOR_FILE
from pipeline.inference.served import GRAPH_FILE, SERVED_FILES, WEIGHTS_FILE, ServedModel
from pipeline.models.decision import DECISION_FILE
from pipeline.models.model_files import TRACER_FILES, served_folder
from pipeline.registry import tracking
from pipeline.registry.versions import CHALLENGER, PRODUCTION, fetch, find_version, is_demo, version_for_photos

STARTER = "starter"
STARTER_DESCRIPTION = "the starter model, trained on METU and SDNET2018"


@dataclass(frozen=True)
class FoundModel:
    """A served model in a folder."""

    folder: Path  # holds the files of the served model and, if recorded, of its OOD detector
    description: str  # the model in words
    version: str  # its name in the prediction log: a number, "starter", or the folder

    def load(self) -> ServedModel:
        """Load the model. Raises CracksError if a file is missing or broken."""
        return ServedModel.load(self.folder)

    def identity(self) -> str:
        """Return a hash over the files that determine the predictions."""
        paths = [self.folder / name for name in (GRAPH_FILE, WEIGHTS_FILE, DECISION_FILE, DETECTOR_FILE)]
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.exists())).hexdigest()


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model in memory, to be sent to another machine, with its OOD detector and tracer if it has one."""

    contents: tuple[tuple[str, bytes], ...]  # path in the folder of the model, content

    @classmethod
    def read(cls, found: FoundModel) -> "ModelFiles":
        """Read the files of a model."""
        paths = {name: found.folder / name for name in (*SERVED_FILES, DETECTOR_FILE, *TRACER_FILES)}
        return cls(tuple((name, path.read_bytes()) for name, path in paths.items() if path.exists()))


@contextmanager
def unpacked(files: ModelFiles) -> Iterator[Path]:
    """Yield a temporary folder with these files."""
    with tempfile.TemporaryDirectory(prefix="cracks-") as scratch:
        for name, content in files.contents:
            (Path(scratch) / name).parent.mkdir(exist_ok=True)
            (Path(scratch) / name).write_bytes(content)
        yield Path(scratch)


@lru_cache(maxsize=1)
def model_of(files: ModelFiles) -> ServedModel:
    """Load the model from these files; the last one is cached."""
    with unpacked(files) as folder:
        return ServedModel.load(folder)


@contextmanager
def found_model(name: str, wanted: str | None) -> Iterator[FoundModel]:
    """Yield a served model; a model without served files is converted into a temporary folder.

    `wanted` is an alias, a version number, a folder or "starter"; None means `production`, else `challenger` if it was
    trained on real concrete, else the starter model. `name` is that of the registered model. Raises CracksError if
    there is no such model, UnavailableError if the tracking server does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="cracks-") as scratch:
        folder, description, version = locate(name, wanted, Path(scratch) / "fetched")
        files = served_starter(Path(scratch) / "starter") if folder is None else served_folder(folder)
        if folder is not None and not all((files / file).exists() for file in SERVED_FILES):
            files = Path(scratch) / "converted"
            files.mkdir()
            _write_served_form(folder, files)
        yield FoundModel(files, description, version)


def locate(name: str, wanted: str | None, scratch: Path) -> tuple[Path | None, str, str]:
    """Return the folder of a model (None for the starter), its description and its version.

    A registered model is downloaded into `scratch`.
    """
    if wanted == STARTER:
        return None, STARTER_DESCRIPTION, STARTER
    if wanted is not None and Path(wanted).is_dir():
        return Path(wanted), f"the model in {wanted}", wanted
    if wanted is None:
        found = version_for_photos(name)
        if found is None:
            reason = f"because no model of {name} trained on real concrete is registered yet"
            return None, f"{STARTER_DESCRIPTION}, {reason}", STARTER
        reference = PRODUCTION if PRODUCTION in found.aliases else CHALLENGER
    else:
        reference, found = wanted, find_version(tracking.connect()[0], name, wanted)
    if found is None:
        raise CracksError(
            f"There is no model {wanted!r} of {name} in {tracking.shown_uri()}. Run `make run` first, or give --model "
            f"an alias, a version, {STARTER!r}, or a folder such as models/CANDIDATE."
        )
    demo = ", trained on drawn images (demo)" if is_demo(found) else ""
    alias = "" if reference.isdecimal() else f" ({reference})"
    version = str(found.version)
    return fetch(name, version, scratch), f"{name} version {version}{alias}{demo}", version


def _write_served_form(folder: Path, out: Path) -> None:
    """Convert the model in `folder` into served files in `out`, without golden images."""
    # Imported here because they import TensorFlow, which takes seconds.
    from pipeline.inference.conversion import write_served
    from pipeline.models.classifier import Classifier

    write_served(Classifier.load(folder), [], out)
    known = served_folder(folder) / DETECTOR_FILE
    if known.exists():
        shutil.copyfile(known, out / DETECTOR_FILE)
