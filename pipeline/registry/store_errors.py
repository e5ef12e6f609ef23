"""What MLflow, its database and the network raise, as a person's mistake (exit code 2) or as an outage (4)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import CracksError, UnavailableError
from pipeline.registry.tracking import first_line, shown_uri

SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+), but expected (\w+)\)")
DAMAGED = ("malformed", "file is not a database", "no such table", "no such column")
NOT_WRITABLE = ("unable to open database file", "readonly database", "Read-only file", "No space left", "disk is full")
NO_SERVER = ("not in a valid JSON format", "is no answer of MLflow", "ENDPOINT_NOT_FOUND")
DATABASES = ("sqlalchemy", "sqlite3", "psycopg2")  # packages whose errors come from the database
DATABASE_REFUSES = re.compile(r"FATAL: +(.* does not exist|password authentication failed|no pg_hba\.conf entry)")
WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
PASSING = (408, 409, 429)  # statuses of a server that is busy


@contextmanager
def explained(advice: str, verb: str = "failed") -> Iterator[None]:
    """Run the block; what the store raises becomes a CracksError, or where waiting helps an UnavailableError.

    `advice` says what to do about an outage; `verb` what the store did.
    """
    try:
        yield
    except CracksError:
        raise
    except Exception as error:
        if not _is_of_the_store(error):
            raise
        mistake = _mistake(error)
        store = f"The tracking store {shown_uri()}"
        if mistake is not None:
            raise CracksError(f"{store} {mistake}") from None
        raise UnavailableError(f"{store} {verb}: {first_line(error)}. {advice}") from error


def _is_of_the_store(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException | OSError) or type(error).__module__.split(".")[0] in DATABASES


def _mistake(error: Exception) -> str | None:
    """Return what is wrong and what to do if a person has to mend it, None for an outage."""
    text, line, status = str(error), first_line(error), _status(error)
    if schema := SCHEMA.search(text):
        return _schema_differs(*schema.groups())
    if any(sign in text for sign in NOT_WRITABLE) or isinstance(error, PermissionError):
        return f"cannot be opened or written: {line}. Make room or correct its permissions, or MLFLOW_TRACKING_URI."
    if any(sign in text for sign in DAMAGED):
        return f"is damaged: {line}. Restore its database from a backup, or move it away to begin a new one."
    if status == 401:
        return ("does not let you in. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that it "
                "knows, and run again; finished stages are not repeated.")  # fmt: skip
    if any(sign in text or sign == getattr(error, "error_code", "") for sign in NO_SERVER):
        return f"is no MLflow server: {line}. Correct MLFLOW_TRACKING_URI, or start the server there."
    if (
        isinstance(error, WRONG_PATH)
        or DATABASE_REFUSES.search(text)
        or (400 <= status < 500 and status not in PASSING)
    ):
        return f"refuses the request: {line}. Correct the cause and run again; finished stages are not repeated."
    return None


def _status(error: Exception) -> int:
    """Return the HTTP status of a failed request; 500 if it had none."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return int(getattr(getattr(error, "response", None), "status_code", None) or 500)


def _schema_differs(found: str, expected: str) -> str:
    import mlflow

    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    versus = f"(its tables have version {found}, MLflow {mlflow.__version__} expects {expected})"
    if list(versions.glob(f"{found}_*.py")):
        return f"was written by an older MLflow {versus}. Make a backup, then run `mlflow db upgrade {shown_uri()}`."
    return (f"was written by a newer MLflow {versus}. Install the version that wrote it (`git pull`, `make install`), "
            "or restore a backup.")  # fmt: skip
