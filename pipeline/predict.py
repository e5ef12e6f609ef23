"""Score images with a registered model, or with one from a folder."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import tracking
from pipeline.classifier import Classifier
from pipeline.errors import CracksError, UnavailableError
from pipeline.images import Pixels, Sizes, UnreadableImageError, decode, stored_size

log = logging.getLogger(__name__)

DEFAULT_ALIASES = ("production", "challenger")


@dataclass(frozen=True)
class Scored:
    """A table of path, probability, label, and why other files could not be read."""

    table: pd.DataFrame
    unreadable: dict[Path, str]


def load_model(name: str, wanted: str | None) -> tuple[Classifier, str]:
    """Return a classifier and, in words, which one it is.

    Args:
        name: of the registered model.
        wanted: an alias, a version number or a folder; None takes `production`, else `challenger`.

    Raises:
        CracksError: there is no such model.
        UnavailableError: the tracking server does not answer.
    """
    if wanted is not None and Path(wanted).is_dir():
        return Classifier.load(Path(wanted)), f"the model in {wanted}"
    client, _ = tracking.connect()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    for reference in (wanted,) if wanted is not None else DEFAULT_ALIASES:
        try:
            if reference.isdecimal():
                found = client.get_model_version(name, reference)
            else:
                found = client.get_model_version_by_alias(name, reference)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, or alias
                continue
            raise UnavailableError(
                f"The tracking store {tracking.tracking_uri()} failed: {tracking.first_line(error)}. Try again later."
            ) from None
        try:
            folder = Path(download_artifacts(f"models:/{name}/{found.version}"))
        except (MlflowException, OSError) as error:
            raise UnavailableError(
                f"{name} version {found.version} cannot be fetched: {tracking.first_line(error)}. Mend the store, or "
                "run `make run`, which registers a model again."
            ) from None
        demo = ", trained on drawn images (demo)" if found.tags.get("demo") == "true" else ""
        alias = "" if reference.isdecimal() else f" ({reference})"
        return Classifier.load(folder), f"{name} version {found.version}{alias}{demo}"
    raise CracksError(
        f"There is no model {wanted or ' or '.join(DEFAULT_ALIASES)!r} of {name} in {tracking.tracking_uri()}. "
        "Run `make run` first, or give --model an alias, a version or a folder such as models/CANDIDATE."
    )


class _ImageFiles:
    """Image files that can be opened; one that fails later, while it is decoded, is black and noted as unreadable."""

    def __init__(self, paths: list[Path]) -> None:
        self.unreadable: dict[Path, str] = {}
        self.paths: list[Path] = []
        sizes: list[tuple[int, int]] = []
        for path in paths:
            try:
                sizes.append(stored_size(path.read_bytes()))
                self.paths.append(path)
            except (UnreadableImageError, OSError) as error:
                self.unreadable[path] = str(error)
        self.sizes: Sizes = np.array(sizes, np.int64).reshape(-1, 2)

    def pixels(self, position: int) -> Pixels:
        path = self.paths[position]
        try:
            return decode(path.read_bytes())
        except (UnreadableImageError, OSError) as error:
            self.unreadable[path] = str(error)
            return np.zeros((*self.sizes[position], 3), np.uint8)


def predict(classifier: Classifier, paths: list[Path]) -> Scored:
    """Return the probability of a crack and what it reads as, for each image that can be decoded."""
    files = _ImageFiles(paths)
    probabilities = classifier.probabilities(files, progress="scoring")
    table = pd.DataFrame(
        {
            "path": [str(path) for path in files.paths],
            "probability": probabilities,
            "label": [classifier.decision.verdict(float(probability)) for probability in probabilities],
        }
    )
    is_readable = np.array([path not in files.unreadable for path in files.paths], bool)
    return Scored(table[is_readable], files.unreadable)
