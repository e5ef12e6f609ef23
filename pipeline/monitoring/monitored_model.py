"""Load what monitoring needs of the registered model; the model is never run, so TensorFlow is not needed."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.errors import CracksError
from pipeline.models.decision import load_decision
from pipeline.registry import tracking
from pipeline.registry.versions import fetch, find_version

REFERENCE_FILE = "reference.parquet"  # written by stage `reference`, registered with the model


@dataclass(frozen=True)
class MonitoredModel:
    """Version, reference and decision threshold of the monitored model."""

    version: str
    reference: pd.DataFrame
    threshold: float


def monitored_model(name: str) -> MonitoredModel:
    """Return the model in production, or the challenger if nothing was promoted yet.

    Raises CracksError if there is none, or it was registered without its reference; UnavailableError if the tracking
    server does not answer.
    """
    client, _ = tracking.connect()
    found = find_version(client, name)
    if found is None:
        raise CracksError(f"No model of {name} is registered in {tracking.shown_uri()}. Run `make run` first.")
    version = str(found.version)
    with tempfile.TemporaryDirectory() as scratch:
        files = fetch(name, version, Path(scratch), only_served=True)
        if not (files / REFERENCE_FILE).is_file():
            raise CracksError(
                f"{name} version {version} was registered without {REFERENCE_FILE}, so it cannot be monitored. "
                "Train and register a model again: `make run`."
            )
        return MonitoredModel(version, pd.read_parquet(files / REFERENCE_FILE), load_decision(files).threshold)
