"""The model whose predictions are monitored, as the registry has it; it is never run, so no TensorFlow is needed."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.errors import CracksError
from pipeline.models.decision import load_decision
from pipeline.models.model_files import EXTRA_FILES
from pipeline.registry import tracking
from pipeline.registry.versions import fetch, find_version

REFERENCE_FILE = "reference.parquet"  # as the stage of this name writes it, beside the registered model


@dataclass(frozen=True)
class MonitoredModel:
    """The model that is monitored: its version, what it was trained on, and its threshold."""

    version: str
    reference: pd.DataFrame
    threshold: float


def monitored_model(name: str) -> MonitoredModel:
    """Return the model in production, or the challenger where nothing was promoted yet.

    Raises:
        CracksError: there is no such model, or it was registered without its reference.
        UnavailableError: the tracking server does not answer.
    """
    client, _ = tracking.connect()
    found = find_version(client, name)
    if found is None:
        raise CracksError(f"No model of {name} is registered in {tracking.shown_uri()}. Run `make run` first.")
    version = str(found.version)
    with tempfile.TemporaryDirectory() as scratch:
        files = fetch(name, version, Path(scratch), EXTRA_FILES)
        if not (files / REFERENCE_FILE).is_file():
            raise CracksError(
                f"{name} version {version} was registered without {REFERENCE_FILE}, which says what it was trained on. "
                "Train and register a model again: `make run`."
            )
        return MonitoredModel(version, pd.read_parquet(files / REFERENCE_FILE), load_decision(files).threshold)
