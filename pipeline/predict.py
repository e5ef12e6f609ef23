"""Score images with a registered model, with one from a folder, or with the starter model."""

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline import tracking
from pipeline.classifier import Classifier
from pipeline.errors import CracksError, UnavailableError
from pipeline.images import Pixels, Sizes, UnreadableImageError, decode, stored_size
from pipeline.ingest import photo_of
from pipeline.observation import observe
from pipeline.starter import DESCRIPTION, load_starter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

DEFAULT_ALIASES = ("production", "challenger")
STARTER = "starter"


@dataclass(frozen=True)
class Scored:
    """A table of path, probability, label, what was noted of each image, and why other files could not be read."""

    table: pd.DataFrame
    observed: pd.DataFrame
    unreadable: dict[Path, str]


def load_model(name: str, wanted: str | None) -> tuple[Classifier, str]:
    """Return a classifier and, in words, which one it is.

    Args:
        name: of the registered model.
        wanted: an alias, a version number, a folder or "starter"; None takes `production`, else `challenger` if it was
            trained on real concrete, else the starter model.

    Raises:
        CracksError: there is no such model.
        UnavailableError: the tracking server does not answer.
    """
    if wanted == STARTER:
        return replace(load_starter(), version=STARTER), DESCRIPTION
    if wanted is not None and Path(wanted).is_dir():
        return replace(Classifier.load(Path(wanted)), version=str(wanted)), f"the model in {wanted}"
    client, _ = tracking.connect()
    for reference in (wanted,) if wanted is not None else DEFAULT_ALIASES:
        found = _find_version(client, name, reference)
        is_demo = found is not None and found.tags.get("demo") == "true"
        if found is None or (wanted is None and reference == "challenger" and is_demo):
            continue
        demo = ", trained on drawn images (demo)" if is_demo else ""
        alias = "" if reference.isdecimal() else f" ({reference})"
        classifier = replace(Classifier.load(_fetched(name, found.version)), version=str(found.version))
        return classifier, f"{name} version {found.version}{alias}{demo}"
    if wanted is None:
        starter = replace(load_starter(), version=STARTER)
        return starter, f"{DESCRIPTION}, because no model of {name} trained on real concrete is registered yet"
    raise CracksError(
        f"There is no model {wanted!r} of {name} in {tracking.shown_uri()}. Run `make run` first, or give --model "
        f"an alias, a version, {STARTER!r}, or a folder such as models/CANDIDATE."
    )


def _find_version(client: "MlflowClient", name: str, reference: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        if reference.isdecimal():
            return client.get_model_version(name, reference)
        return client.get_model_version_by_alias(name, reference)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, or alias
            return None
        raise UnavailableError(
            f"The tracking store {tracking.shown_uri()} failed: {tracking.first_line(error)}. Try again later."
        ) from None


def _fetched(name: str, version: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(f"models:/{name}/{version}"))
    except (MlflowException, OSError) as error:
        raise UnavailableError(
            f"{name} version {version} cannot be fetched: {tracking.first_line(error)}. Mend the store, or "
            "run `make run`, which registers a model again."
        ) from None


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
    observed = observe(classifier, files, progress="scoring")
    table = pd.DataFrame(
        {
            "path": [str(path) for path in files.paths],
            "probability": observed["probability"],
            "label": [classifier.decision.verdict(float(probability)) for probability in observed["probability"]],
        }
    )
    is_readable = np.array([path not in files.unreadable for path in files.paths], bool)
    return Scored(table[is_readable], observed[is_readable], files.unreadable)


def log_rows(scored: Scored, model_version: str, photo_pattern: str | None, time: datetime) -> pd.DataFrame:
    """Return the rows of the prediction log for what was scored.

    Args:
        scored: images with what was noted of them.
        model_version: which model scored them.
        photo_pattern: regular expression whose first group names the photo of a tile; without one, and where it does
            not match, each image is a photo of its own.
        time: when, with a time zone.
    """
    paths = [str(Path(path).absolute()) for path in scored.table["path"]]
    return scored.observed.assign(
        time=pd.Timestamp(time),
        model_version=model_version,
        source="predict",
        photo=[photo_of(path, photo_pattern) or path for path in paths],
        path=paths,
    )
