"""Find versions in MLflow's model registry by number or alias, and download their files."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import CracksError
from pipeline.files import write_text
from pipeline.models.model_files import SERVED, SERVED_BEFORE, TRACER_FOLDER, TRACER_HASH, served_folder
from pipeline.registry import tracking
from pipeline.registry.store_errors import explained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PRODUCTION, CHALLENGER = "production", "challenger"  # aliases
TRACER_TAG = "cracks.tracer_hash"  # of a version
WORST_LEFT_OUT_TAG = "worst_source_left_out"  # of a version: AUROC and name
NOT_LEFT_OUT_TAG = "sources_not_left_out"  # of a version: names of those with too few images for that
MOVED = ("promoted", "rolled back")  # outcomes of decisions that moved the alias `production`
NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no such model or version; no such alias
FORBIDDEN = "PERMISSION_DENIED"  # a server with sign-in also returns it for a missing model, except to administrators


def find_version(client: "MlflowClient", name: str, reference: str | None = None) -> "ModelVersion | None":
    """Return a version of the registered model `name`, None if there is none.

    `reference` is its number or alias; None means the version in production, else the challenger. Raises CracksError if
    the version that was put into production has been deleted, UnavailableError if the tracking server does not answer.
    """
    found = lookup(client, name, reference or PRODUCTION)
    if found is None and reference in (None, PRODUCTION):
        deleted = deleted_production(client, name)
        if deleted is not None:
            raise CracksError(
                f"Version {deleted} of {name}, which was in production, has been deleted in {tracking.shown_uri()}: "
                "the alias production points nowhere. `cracks rollback --reason TEXT` puts the version before it back. "
                "If there is none, `cracks promote VERSION` puts another one there."
            )
    return found if found or reference else lookup(client, name, CHALLENGER)


def lookup(client: "MlflowClient", name: str, reference: str) -> "ModelVersion | None":
    """Return the version with this number or alias, None if there is none. Raises UnavailableError."""
    from mlflow.exceptions import MlflowException

    with explained("Try again later."):
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


def deleted_production(client: "MlflowClient", name: str) -> str | None:
    """Return the version that was last put into production if it exists no more; MLflow deletes its aliases with it."""
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    with explained("Try again later."):
        try:
            decisions = client.get_experiment_by_name(decisions_of(name))
            if decisions is None:
                return None
            moves = [
                run
                for outcome in MOVED
                for run in client.search_runs(
                    [decisions.experiment_id],
                    f"tags.outcome = '{outcome}'",
                    ViewType.ALL,
                    max_results=1,
                    order_by=["attributes.start_time DESC"],
                )
            ]
        except MlflowException as error:
            if error.error_code == FORBIDDEN:  # the account of the API may not read decisions
                return None
            raise
    if not moves:
        return None
    version = str(max(moves, key=lambda run: run.info.start_time).data.tags["version"])
    return None if lookup(client, name, version) else version


def decisions_of(name: str) -> str:
    """Return the name of the experiment with the decisions about the registered model `name`."""
    return f"{name}-decisions"


def version_for_photos(name: str) -> "ModelVersion | None":
    """Return the version of `name` that scores real photos; None if that is the starter model.

    It is the version in production, else the challenger. A demo, which was trained on drawn images, never is. A store
    that does not exist is not created. Raises as `find_version`, and CracksError if MLFLOW_TRACKING_URI is wrong.
    """
    database = tracking.local_database()
    if tracking.tracking_uri() == f"{tracking.SQLITE}{database}" and not database.exists():
        return None
    client = tracking.open_client()
    found = (find_version(client, name, alias) for alias in (PRODUCTION, CHALLENGER))
    return next((version for version in found if version is not None and not is_demo(version)), None)


def is_demo(version: "ModelVersion") -> bool:
    """Return whether a version was trained on drawn images, and says nothing about real concrete."""
    return bool(version.tags.get("demo") == "true")


def worst_left_out(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the AUROC on the worst source left out when a version was trained, by its name; empty if none was."""
    auroc, _, source = tags.get(WORST_LEFT_OUT_TAG, "").partition(" ")
    return {source: float(auroc)} if source else {}


def is_registered(out: Path) -> bool:
    """Return whether the current store has the version that `out` (registered.json) names.

    In another store, the version of that number may be another model, so the run ids are compared too. Raises
    UnavailableError if the tracking server does not answer.
    """
    written = json.loads(out.read_text(encoding="utf-8"))
    if written["version"] is None:
        return False
    client, _ = tracking.connect()
    found = find_version(client, written["name"], written["version"])
    return found is not None and found.run_id == written["run_id"] and bool(files_of(written["name"], found.version))


def files_of(name: str, version: str) -> frozenset[str]:
    """Return the files and folders at the top of a version; empty if they are gone. Raises UnavailableError."""
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    with explained("Try again later."):
        try:
            listed = list_artifacts(f"models:/{name}/{version}", tracking_uri=tracking.tracking_uri())
        except MlflowException as error:
            if error.error_code in NOT_FOUND:
                return frozenset()
            raise
        return frozenset(found.path for found in listed)


def fetch(name: str, version: str, folder: Path, *, only_served: bool = False) -> Path:
    """Download a version, or only the served model and what is beside it, into `folder`; return the path of the files.

    The hash of its tracer, which a tag has, is written beside that, so that a damaged one is noticed when it is loaded.
    Raises CracksError if the store does not have the files, UnavailableError if it does not answer.
    """
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    from pipeline.registry.bounded_requests import TRANSFER_S, within

    files = files_of(name, version)
    if not files:
        raise CracksError(
            f"{name} version {version} cannot be fetched: its files are gone from {tracking.shown_uri()}. Restore them "
            "from a backup, or run `make run`, which registers the model again."
        )
    uri = tracking.tracking_uri()
    source = f"models:/{name}/{version}"
    if only_served:
        source += f"/{SERVED if 'artifacts' in files else SERVED_BEFORE}"
    download = partial(download_artifacts, source, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)
    with explained(f"{name} version {version} cannot be fetched. Try again later."):
        fetched = Path(within(TRANSFER_S, download))
    found = lookup(MlflowClient(uri, uri), name, version)
    if found is not None and (digest := found.tags.get(TRACER_TAG)):
        write_text(served_folder(fetched) / TRACER_FOLDER / TRACER_HASH, digest)
    return fetched
