"""The tracking store of MLflow.

Without MLFLOW_TRACKING_URI the store is SQLite in mlflow/ of the project, whatever the working directory is.
"""

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.errors import UnavailableError
from pipeline.project import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "cracks"
# Fail within seconds if the server is unavailable; MLflow's defaults take minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # no progress bars for single files
    "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS": "5",  # epochs that wait go in one request, which fails once
}


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else the SQLite store of the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow' / 'mlflow.db'}"


def shown_uri() -> str:
    """Return the tracking URI without user name and password, for messages."""
    return re.sub(r"://[^/@]*@", "://", tracking_uri())


@contextlib.contextmanager
def store_lock() -> Iterator[None]:
    """Hold the lock under which processes of this project set up the store, or look up and create a run."""
    folder = project_root() / "mlflow"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_client() -> "MlflowClient":
    """Return a client of the store, and make the store the default of this process for downloads."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for chatty in ("alembic", "mlflow.system_metrics.system_metrics_monitor", "mlflow.store.db.utils", "mlflow.models"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient()


def connect() -> tuple["MlflowClient", str]:
    """Return a client of the store and the id of the experiment, which is created if needed.

    Raises:
        UnavailableError: the tracking server does not answer, or rejects the request.
    """
    from mlflow.exceptions import MlflowException

    try:
        with store_lock():
            client = open_client()
            return client, experiment_id(client, EXPERIMENT)
    except (MlflowException, OSError) as error:
        if "error code 401" in str(error):
            raise UnavailableError(
                f"The tracking store {shown_uri()} does not let you in. Set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD to an account that it knows, and run again; finished stages are not repeated."
            ) from None
        raise UnavailableError(
            f"The tracking store {shown_uri()} does not answer: {first_line(error)}. Nothing is lost: start it, or "
            "correct MLFLOW_TRACKING_URI, and run again; finished stages are not repeated."
        ) from None


def experiment_id(client: "MlflowClient", name: str) -> str:
    """Return the id of the experiment of this name, which is created if needed."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    location = (project_root() / "mlflow" / "artifacts").as_uri() if tracking_uri().startswith("sqlite:") else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process has just created it
            raise
        return experiment_id(client, name)


def first_line(error: Exception) -> str:
    """Return the first line of an error message, because MLflow appends entire responses."""
    return (str(error).splitlines() or [type(error).__name__])[0]
