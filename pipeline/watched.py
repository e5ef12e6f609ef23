"""The model whose predictions are watched, as the registry has it; it is never run, so no TensorFlow is needed."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline import tracking
from pipeline.decision import load_decision
from pipeline.errors import CracksError, UnavailableError

ALIASES = ("production", "challenger")
REFERENCE_FILE = "reference.parquet"  # as the stage of this name writes it, beside the registered model


@dataclass(frozen=True)
class Watched:
    """The model that is watched: its version, what it was trained on, and its threshold."""

    version: str
    reference: pd.DataFrame
    threshold: float


def watched_model(name: str) -> Watched:
    """Return the model in production, or the challenger where nothing was promoted yet.

    Raises:
        CracksError: there is no such model, or it was registered without its reference.
        UnavailableError: the tracking server does not answer.
    """
    client, _ = tracking.connect()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        aliases = dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise UnavailableError(
                f"The tracking store {tracking.tracking_uri()} failed: {tracking.first_line(error)}. Try again later."
            ) from None
        aliases = {}
    version = next((str(aliases[alias]) for alias in ALIASES if alias in aliases), None)
    if version is None:
        raise CracksError(f"No model of {name} is registered in {tracking.tracking_uri()}. Run `make run` first.")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            files = Path(download_artifacts(f"models:/{name}/{version}/extra_files", dst_path=scratch))
        except (MlflowException, OSError) as error:
            raise UnavailableError(
                f"{name} version {version} cannot be fetched: {tracking.first_line(error)}."
            ) from None
        if not (files / REFERENCE_FILE).is_file():
            raise CracksError(
                f"{name} version {version} was registered without {REFERENCE_FILE}, which says what it was trained on. "
                "Train and register a model again: `make run`."
            )
        return Watched(version, pd.read_parquet(files / REFERENCE_FILE), load_decision(files).threshold)
