"""Copy the store of one machine to a new server: runs, models, versions, aliases, tags, decisions and all files.

    mlflow db upgrade postgresql:///mlflow
    python pipeline/registry/move_store.py mlflow --backend-store-uri postgresql:///mlflow \
        --artifacts-destination s3://mlflow

The two options are those of `mlflow server`. Ids, numbers and times stay as they are; where a file lies becomes an
address of the server. Needs MLflow alone, not this project, so that it runs in the server's image.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

SERVED_BY_MLFLOW = "mlflow-artifacts:"  # where a server keeps files that it passes on to --artifacts-destination
ROWS = 1000  # in memory at once
EXPERIMENT = "cracks"


def tables() -> list[sa.Table]:
    """Return all tables of MLflow, each after those that it refers to."""
    import mlflow.store.db.utils  # noqa: F401 - it imports the modules of all tables
    from mlflow.store.db.base_sql_model import Base

    return list(Base.metadata.sorted_tables)


def schema_version(connection: sa.Connection) -> str:
    """Return the version of the tables in a database."""
    return str(connection.execute(sa.text("select version_num from alembic_version")).scalar_one())


def copy_rows(source: sa.Connection, target: sa.Connection) -> None:
    """Replace the rows of an unused target by those of the source, with the locations of files rewritten.

    Raises ValueError if the databases have different versions of the tables, or the target has runs.
    """
    if (ours := schema_version(source)) != (theirs := schema_version(target)):
        raise ValueError(f"the tables differ: version {ours} here, {theirs} there. Run `mlflow db upgrade` on both.")
    if target.execute(sa.text("select count(*) from runs")).scalar_one():
        raise ValueError("the target has runs already. Copy to a new server; nothing was changed.")
    old_root = source.execute(
        sa.text("select artifact_location from experiments where name = :name"), {"name": EXPERIMENT}
    ).scalar_one()
    for table in reversed(tables()):
        target.execute(table.delete())
    for table in tables():
        for rows in _rows(source, table, old_root):
            target.execute(table.insert(), rows)
        column = table.autoincrement_column
        if column is not None and target.dialect.name == "postgresql":  # the next id follows those that were copied
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            target.execute(sa.select(sa.func.setval(sequence, sa.select(sa.func.max(column)).scalar_subquery())))


def _rows(source: sa.Connection, table: sa.Table, old_root: str) -> Iterator[list[dict[str, Any]]]:
    def moved(value: Any) -> Any:
        is_location = isinstance(value, str) and (value == old_root or value.startswith(f"{old_root}/"))
        return f"{SERVED_BY_MLFLOW}/{value[len(old_root) :].lstrip('/')}" if is_location else value

    for rows in source.execute(sa.select(table)).mappings().partitions(ROWS):
        new = [{name: moved(value) for name, value in row.items()} for row in rows]
        for row in new:  # MLflow's own experiment "Default" lay in a folder that this project does not use
            if table.name == "experiments" and not row["artifact_location"].startswith(SERVED_BY_MLFLOW):
                row["artifact_location"] = f"{SERVED_BY_MLFLOW}/{row['experiment_id']}"
        yield new


def errors_of_s3() -> tuple[type[Exception], ...]:
    """Return what an S3 store raises for a wrong address, bucket or key; nothing where boto3 is not installed."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return ()
    return Boto3Error, BotoCoreError, ClientError


def is_outage(error: Exception) -> bool:
    """Return whether a store or a database did not answer, so that another try can help."""
    if isinstance(error, sa.exc.OperationalError):
        return not any(words in str(error) for words in ("does not exist", "authentication failed", "sqlite3"))
    return {kind.__name__ for kind in type(error).__mro__} & {"ConnectionError", "HTTPClientError"} != set()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="folder with mlflow.db and artifacts/, which stays as it is")
    parser.add_argument("--backend-store-uri", required=True, help="database of the new server, made by MLflow")
    parser.add_argument("--artifacts-destination", required=True, help="where the new server keeps files")
    args = parser.parse_args()
    if not (args.store / "mlflow.db").is_file():
        parser.error(f"there is no mlflow.db in {args.store}")
    source, target = sa.create_engine(f"sqlite:///{args.store}/mlflow.db"), sa.create_engine(args.backend_store_uri)
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    expected: tuple[type[Exception], ...] = (
        ValueError, OSError, MlflowException, sa.exc.SQLAlchemyError, *errors_of_s3(),
    )  # fmt: skip
    try:
        with source.connect() as reading, target.begin() as writing:
            copy_rows(reading, writing)
            get_artifact_repository(args.artifacts_destination).log_artifacts(str(args.store / "artifacts"))
    except expected as error:
        text = f"{error}. The database is as it was; files that were copied already are replaced by the next try"
        if is_outage(error):
            parser.exit(4, f"{parser.prog}: error: {text}\n")
        parser.error(text)


if __name__ == "__main__":
    main()
