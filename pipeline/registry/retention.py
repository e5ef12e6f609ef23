"""Delete models that the gate refused long ago. Their runs, with all scores, stay in MLflow."""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.registry import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

STATE_TAG, REFUSED = "state", "refused"  # version tag that the gate writes


@dataclass(frozen=True)
class RefusedModel:
    """A registered version that the gate refused."""

    name: str
    version: str
    created: datetime
    source: str  # URI of its files


def refused_models(client: "MlflowClient", name: str, before: datetime) -> list[RefusedModel]:
    """Return the refused versions created before a time; a version with an alias is in use and is not returned.

    Args:
        client: MLflow client.
        name: name of the registered model.
        before: time with a time zone.
    """
    in_use = {str(version) for model in client.search_registered_models(f"name = '{name}'") for version in
              model.aliases.values()}  # fmt: skip
    found = [
        RefusedModel(name, str(made.version), datetime.fromtimestamp(made.creation_timestamp / 1000, before.tzinfo),
                     str(made.source))
        for made in client.search_model_versions(f"name = '{name}' and tags.`{STATE_TAG}` = '{REFUSED}'")
        if str(made.version) not in in_use
    ]  # fmt: skip
    return sorted((model for model in found if model.created < before), key=lambda model: int(model.version))


def delete(client: "MlflowClient", model: RefusedModel) -> None:
    """Delete the files of a version, then the version, so that a run killed in between can be repeated."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = model.source
    if location.startswith("models:/"):
        location = client.get_logged_model(location.removeprefix("models:/")).artifact_location
    get_artifact_repository(location).delete_artifacts()
    client.delete_model_version(model.name, model.version)


def clean_registry(name: str, before: datetime, *, dry_run: bool) -> None:
    """Log the refused models created before a time, and delete them unless it is a dry run.

    Raises:
        UnavailableError: the tracking server does not answer.
    """
    client, _ = tracking.connect()
    for model in refused_models(client, name, before):
        log.info("%s version %s, refused, made on %s", model.name, model.version, model.created.date())
        if not dry_run:
            delete(client, model)
