"""Deletes the files of models that the gate refused long ago. Their runs, with all scores, stay in MLflow."""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.registry import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

STATE_TAG, REFUSED = "state", "refused"  # as the gate writes them beside a version


@dataclass(frozen=True)
class RefusedModel:
    """A registered version that never went to production."""

    name: str
    version: str
    created: datetime
    source: str  # URI of its files


def refused_models(client: "MlflowClient", name: str, before: datetime) -> list[RefusedModel]:
    """Return the versions that were refused and made before then; one that has an alias is in use, whatever its state.

    Args:
        client: of the registry.
        name: of the registered model.
        before: a time with its zone.
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
    """Delete the files of a version, then the version: killed in between, the next time finds it again."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = model.source
    if location.startswith("models:/"):
        location = client.get_logged_model(location.removeprefix("models:/")).artifact_location
    get_artifact_repository(location).delete_artifacts()
    client.delete_model_version(model.name, model.version)


def clean_registry(name: str, before: datetime, *, dry_run: bool) -> None:
    """Say which refused models are older than `before`, and delete them unless it is a dry run.

    Raises:
        UnavailableError: the tracking server does not answer.
    """
    client, _ = tracking.connect()
    for model in refused_models(client, name, before):
        log.info("%s version %s, refused, made on %s", model.name, model.version, model.created.date())
        if not dry_run:
            delete(client, model)
