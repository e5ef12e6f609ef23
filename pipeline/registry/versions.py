"""Find versions in MLflow's model registry by number or alias, and download their files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UnavailableError
from pipeline.models.model_files import SERVED, SERVED_BEFORE
from pipeline.registry import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PRODUCTION, CHALLENGER = "production", "challenger"  # aliases
NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no such model or version; no such alias
FORBIDDEN = "PERMISSION_DENIED"  # a server with sign-in also returns it for a missing model, except to administrators


def find_version(client: "MlflowClient", name: str, reference: str | None = None) -> "ModelVersion | None":
    """Return a version of the registered model `name`, None if there is none.

    Args:
        client: MLflow client.
        name: name of the registered model.
        reference: number or alias; None means the version in production, else the challenger.

    Raises:
        UnavailableError: the tracking server does not answer.
    """
    if reference is None:
        return find_version(client, name, PRODUCTION) or find_version(client, name, CHALLENGER)
    from mlflow.exceptions import MlflowException

    try:
        try:
            if reference.isdecimal():
                return client.get_model_version(name, reference)
            return client.get_model_version_by_alias(name, reference)
        except MlflowException as error:
            if error.error_code in NOT_FOUND:
                return None
            if error.error_code == FORBIDDEN and not client.search_registered_models(f"name = '{name}'"):
                return None
            raise
    except (MlflowException, OSError) as error:
        raise UnavailableError(
            f"The tracking store {tracking.shown_uri()} failed: {tracking.first_line(error)}. Try again later."
        ) from None


def version_for_photos(name: str) -> "ModelVersion | None":
    """Return the version of `name` that answers about real photos; None if that is the starter model.

    It is the version in production, else the challenger. A demo, which has learned from drawn images, never is. A store
    that does not exist is not created.

    Raises:
        UnavailableError: the tracking server does not answer.
    """
    uri = tracking.tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    client = tracking.open_client()
    found = (find_version(client, name, alias) for alias in (PRODUCTION, CHALLENGER))
    return next((version for version in found if version is not None and not is_demo(version)), None)


def is_demo(version: "ModelVersion") -> bool:
    """Return whether a version has learned from drawn images, and says nothing about real concrete."""
    return bool(version.tags.get("demo") == "true")


def is_registered(out: Path) -> bool:
    """Return whether the current store has the version that `out` (registered.json) names.

    In another store, the version of that number may be another model, so the run ids are compared too.

    Raises:
        UnavailableError: the tracking server does not answer.
    """
    written = json.loads(out.read_text(encoding="utf-8"))
    if written["version"] is None:
        return False
    client, _ = tracking.connect()
    found = find_version(client, written["name"], written["version"])
    return found is not None and found.run_id == written["run_id"]


def fetch(name: str, version: str, folder: Path, *, only_served: bool = False) -> Path:
    """Download a version, or only the served model and what is beside it, into `folder`; return the path of the files.

    Raises:
        UnavailableError: the store does not have the files, or does not answer.
    """
    from mlflow.artifacts import download_artifacts, list_artifacts
    from mlflow.exceptions import MlflowException

    uri = tracking.tracking_uri()
    source = f"models:/{name}/{version}"
    try:
        if only_served:
            folders = {found.path for found in list_artifacts(source, tracking_uri=uri)}
            source += f"/{SERVED if 'artifacts' in folders else SERVED_BEFORE}"
        found = Path(download_artifacts(source, dst_path=str(folder), tracking_uri=uri, registry_uri=uri))
        if found.is_dir() and not any(found.iterdir()):  # MLflow leaves an empty folder if the source is gone
            raise FileNotFoundError("its files are gone")
        return found
    except (MlflowException, OSError) as error:
        raise UnavailableError(
            f"{name} version {version} cannot be fetched: {tracking.first_line(error)}. Repair the store, or "
            "run `make run`, which registers a model again."
        ) from None
