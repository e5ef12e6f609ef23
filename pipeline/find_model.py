"""Finding the model that a person asks for, in the form in which it is served."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import tracking
from pipeline.decision import DECISION_FILE
from pipeline.errors import CracksError
from pipeline.files import write_json
from pipeline.known_concrete import KNOWN_CONCRETE_FILE, KnownConcrete
from pipeline.registry import fetch, find_version
from pipeline.served import GRAPH_FILE, SERVED_FILES, WEIGHTS_FILE, ServedModel

if TYPE_CHECKING:
    from pipeline.classifier import Classifier

DEFAULT_ALIASES = ("production", "challenger")
STARTER = "starter"
STARTER_DESCRIPTION = "the starter model, trained on METU and SDNET2018"
STARTER_CONCRETE = Path(__file__).with_name("starter_concrete.npz")


@dataclass(frozen=True)
class FoundModel:
    """A model in its served form.

    Attributes:
        folder: that has the files of the served form at its top.
        description: which model it is, in words.
        version: by which the prediction log names it: a number, "starter", or the folder.
        concrete: the file that says what concrete it knows, None where it has none.
    """

    folder: Path
    description: str
    version: str
    concrete: Path | None

    def load(self) -> ServedModel:
        """Return the model, ready to score. Raises CracksError."""
        return ServedModel.load(self.folder)

    def known_concrete(self) -> KnownConcrete | None:
        """Return what concrete it knows, None where that was not recorded."""
        return None if self.concrete is None else KnownConcrete.load(self.concrete)

    def identity(self) -> str:
        """Return a hash of all that decides an answer."""
        digest = hashlib.sha256()
        for name in (GRAPH_FILE, WEIGHTS_FILE, DECISION_FILE):
            digest.update((self.folder / name).read_bytes())
        if self.concrete is not None:
            digest.update(self.concrete.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ModelFiles:
    """A model as it travels to another machine: the content of its files by name.

    Attributes:
        contents: (name, content) of the files of the served form and, where there is one, of what concrete it knows.
    """

    contents: tuple[tuple[str, bytes], ...]

    @classmethod
    def read(cls, found: FoundModel) -> "ModelFiles":
        """Read the files of a model."""
        paths = {name: found.folder / name for name in SERVED_FILES}
        if found.concrete is not None:
            paths[KNOWN_CONCRETE_FILE] = found.concrete
        return cls(tuple((name, path.read_bytes()) for name, path in paths.items()))


@lru_cache(maxsize=1)
def model_of(files: ModelFiles) -> tuple[ServedModel, KnownConcrete | None]:
    """Return the model of these files and the concrete it knows, the same ones for the next call."""
    with tempfile.TemporaryDirectory(prefix="cracks-") as scratch:
        for name, content in files.contents:
            (Path(scratch) / name).write_bytes(content)
        concrete = Path(scratch) / KNOWN_CONCRETE_FILE
        return ServedModel.load(Path(scratch)), KnownConcrete.load(concrete) if concrete.exists() else None


@contextmanager
def found_model(name: str, wanted: str | None) -> Iterator[FoundModel]:
    """Yield a model in its served form; a model that has none is converted for as long as the context lasts.

    Args:
        name: of the registered model.
        wanted: an alias, a version number, a folder or "starter"; None takes `production`, else `challenger` if it was
            trained on real concrete, else the starter model.

    Raises:
        CracksError: there is no such model.
        UnavailableError: the tracking server does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="cracks-") as scratch:
        folder, description, version = locate(name, wanted, Path(scratch) / "fetched")
        converted = Path(scratch) / "converted"
        converted.mkdir()
        if folder is None:
            _convert_starter(converted)
            concrete = STARTER_CONCRETE
            files = converted
        else:
            files = folder / "extra_files" if (folder / "MLmodel").exists() else folder
            concrete = files / KNOWN_CONCRETE_FILE
            if not all((files / file).exists() for file in SERVED_FILES):
                _convert(folder, converted)
                files = converted
        yield FoundModel(files, description, version, concrete if concrete.exists() else None)


def locate(name: str, wanted: str | None, scratch: Path) -> tuple[Path | None, str, str]:
    """Return the folder of a model, None for the starter, in words which model it is, and its version.

    A registered model is fetched into `scratch`.
    """
    if wanted == STARTER:
        return None, STARTER_DESCRIPTION, STARTER
    if wanted is not None and Path(wanted).is_dir():
        return Path(wanted), f"the model in {wanted}", wanted
    client, _ = tracking.connect()
    for reference in (wanted,) if wanted is not None else DEFAULT_ALIASES:
        found = find_version(client, name, reference)
        is_demo = found is not None and found.tags.get("demo") == "true"
        if found is None or (wanted is None and reference == "challenger" and is_demo):
            continue
        demo = ", trained on drawn images (demo)" if is_demo else ""
        alias = "" if reference.isdecimal() else f" ({reference})"
        version = str(found.version)
        return fetch(name, version, scratch), f"{name} version {version}{alias}{demo}", version
    if wanted is None:
        reason = f"because no model of {name} trained on real concrete is registered yet"
        return None, f"{STARTER_DESCRIPTION}, {reason}", STARTER
    raise CracksError(
        f"There is no model {wanted!r} of {name} in {tracking.shown_uri()}. Run `make run` first, or give --model "
        f"an alias, a version, {STARTER!r}, or a folder such as models/CANDIDATE."
    )


def _convert_starter(scratch: Path) -> None:
    from pipeline.starter import load_starter  # only here: it takes TensorFlow, which takes seconds

    _write(load_starter(), scratch)


def _convert(folder: Path, scratch: Path) -> None:
    from pipeline.classifier import Classifier

    _write(Classifier.load(folder), scratch)


def _write(classifier: "Classifier", scratch: Path) -> None:
    from pipeline.conversion import write_served

    write_served(classifier.model, [], scratch)
    write_json(scratch / DECISION_FILE, classifier.decision.as_dict())
