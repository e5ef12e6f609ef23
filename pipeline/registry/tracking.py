"""The tracking store of MLflow.

Without MLFLOW_TRACKING_URI the store is SQLite in mlflow/ of the project, whatever the working directory is.
"""

import contextlib
import logging
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipeline.errors import CracksError
from pipeline.files import locked
from pipeline.project import project_root
from pipeline.safe_text import without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EXPERIMENT = "cracks"
SQLITE = "sqlite:///"
LOCATIONS = (  # columns of MLflow's tables with the absolute location of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Fail within seconds if the server is unavailable; MLflow's defaults take minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "PGCONNECT_TIMEOUT": "10",  # seconds for each address of a PostgreSQL server
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # no progress bars for single files
    "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS": "5",  # epochs that wait go in one request, which fails once
}


def local_database() -> Path:
    """Return the path of the project's own store, which may not exist yet."""
    return project_root() / "mlflow" / "mlflow.db"


def local_artifacts() -> Path:
    """Return the folder of the files of the project's own store."""
    return project_root() / "mlflow" / "artifacts"


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else the SQLite store of the project."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{SQLITE}{local_database()}"


def shown_uri() -> str:
    """Return the tracking URI without user name and password, for messages."""
    return without_passwords(tracking_uri())


def check_uri() -> None:
    """Raise CracksError if MLFLOW_TRACKING_URI is no address of a store, or names a database that does not exist."""
    uri = tracking_uri()
    scheme, _, rest = uri.partition("://")
    wrong = None
    if scheme in ("http", "https"):
        wrong = None if re.fullmatch(r"[^\s/]+(/\S*)?", rest) else "has no host, or a blank in it"
    elif scheme == "sqlite":
        database = Path(uri.removeprefix(SQLITE))
        if database != local_database() and not database.is_file():
            wrong = f"names a database that does not exist; `mlflow db upgrade {uri}` makes a new one"
    elif scheme.split("+")[0] not in ("postgresql", "mysql", "mssql"):
        wrong = "begins with none of http://, https://, sqlite:/// and postgresql://"
        if re.fullmatch(r"[\w.-]+:\d+(/\S*)?", uri):
            wrong += f"; did you mean http://{uri}?"
    if wrong is not None:
        raise CracksError(
            f"MLFLOW_TRACKING_URI is {shown_uri()!r}, which {wrong}. Correct it, or unset it to use the store of the "
            "project."
        )


def store_lock() -> contextlib.AbstractContextManager[object]:
    """Hold the lock under which processes of this project set up the store, or look up and create a run."""
    return locked(local_database().with_name(".lock"))


def open_client() -> "MlflowClient":
    """Return a client of the store, and make the store the default of this process for downloads.

    Raises CracksError if MLFLOW_TRACKING_URI is wrong.
    """
    check_uri()
    follow_moved_project()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    from pipeline.registry import bounded_requests

    bounded_requests.install()
    for chatty in ("alembic", "mlflow.system_metrics.system_metrics_monitor", "mlflow.models"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uri = tracking_uri()
    if not uri.startswith("http"):
        import mlflow.store.db.utils as database

        logging.getLogger(database.__name__).setLevel(logging.CRITICAL)  # its errors, with traceback, are raised too
        database.MAX_RETRY_COUNT = 2  # at the first connection; not ten, with pauses of 100 s together
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient()


def follow_moved_project() -> None:
    """Let the project's own store name files where they are, if the project was copied or moved to another path.

    MLflow stores absolute locations. Those below mlflow/artifacts/ of the former path get that of this one.
    """
    if not local_database().is_file():
        return
    here = local_artifacts().as_uri()
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(local_database())) as store:
        # What is wrong with the database, MLflow says when it opens it.
        for (old,) in store.execute("select distinct artifact_location from experiments").fetchall():
            if old == here or not re.fullmatch(r"file://.*/mlflow/artifacts", old or ""):
                continue
            if Path(unquote(old.removeprefix("file://"))).is_dir() and not local_artifacts().is_dir():
                continue  # only the database was copied
            with store:
                for table, column in LOCATIONS:
                    store.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) "  # noqa: S608 - constants
                        f"where {column} = ? or substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
            log.info("The project was at another path before: its models are now read from %s, not %s", here, old)


def connect() -> tuple["MlflowClient", str]:
    """Return a client of the store and the id of the experiment, which is created if needed.

    Raises CracksError if MLFLOW_TRACKING_URI is wrong, or the store cannot be used as it is; UnavailableError if the
    tracking server does not answer.
    """
    from pipeline.registry.store_errors import explained

    advice = (
        "Nothing is lost: start it, or correct MLFLOW_TRACKING_URI, and run again; finished stages are not repeated."
    )
    with explained(advice, "does not answer"), store_lock():
        client = open_client()
        return client, experiment_id(client, EXPERIMENT)


def experiment_id(client: "MlflowClient", name: str) -> str:
    """Return the id of the experiment of this name, which is created if needed; CracksError if it was deleted."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is not None and known.lifecycle_stage == "deleted":
        raise CracksError(
            f"The experiment {name!r} was deleted in {shown_uri()}. Restore it: MLFLOW_TRACKING_URI={shown_uri()} "
            f"mlflow experiments restore --experiment-id {known.experiment_id}"
        )
    if known is not None:
        return str(known.experiment_id)
    location = local_artifacts().as_uri() if tracking_uri().startswith("sqlite:") else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process has just created it
            raise
        return experiment_id(client, name)


def first_line(error: Exception) -> str:
    """Return the first line of an error message, because MLflow appends entire responses; without passwords."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]  # SQLAlchemy's
    return without_passwords((lines or [type(error).__name__])[0])
