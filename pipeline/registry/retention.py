"""Delete models that the gate refused long ago. Their runs, with all scores, stay in MLflow."""

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.registry import tracking
from pipeline.registry.store_errors import explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

MODELS = "models:/"  # the source of a version that MLflow 3 logged


def refused_versions(client: "MlflowClient", name: str, before: datetime) -> "list[ModelVersion]":
    """Return the versions of a model that were refused and were created before a time; one with an alias is in use."""
    return [
        version
        for version in client.search_model_versions(f"name = '{name}' and tags.`state` = 'refused'")
        if version.creation_timestamp < 1000 * before.timestamp()
        and not client.get_model_version(name, version.version).aliases
    ]


def delete(client: "MlflowClient", version: "ModelVersion") -> None:
    """Delete the files of a version, then the version, so that a run killed in between can be repeated.

    Not by `mlflow gc`, which deletes every run that a person deleted, too (docs/decisions/0018-deleting-models.md).
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = str(version.source)
    if location.startswith(MODELS):
        model_id = location.removeprefix(MODELS)
        location = client.get_logged_model(model_id).artifact_location
    get_artifact_repository(location).delete_artifacts()
    client.delete_model_version(version.name, version.version)


def clean_registry(name: str, before: datetime, *, dry_run: bool) -> None:
    """Log the refused models created before a time, and delete them unless it is a dry run.

    Raises UnavailableError if the tracking server does not answer, or does not allow it.
    """
    client, _ = tracking.connect()
    with explained("Run `make gc` again."):
        for version in refused_versions(client, name, before):
            made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).date()
            log.info("%s version %s, refused, made on %s", name, version.version, made)
            if not dry_run:
                delete(client, version)
