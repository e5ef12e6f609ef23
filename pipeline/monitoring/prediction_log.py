"""The prediction log: what production sees, kept as Parquet files in a folder, so that drift can be noticed.

A row an image: time (UTC), model_version, source (who asked: "predict", "api" ...), photo (what the image is a part of,
or itself), path (where the image lies, missing if it lies nowhere), probability, how it looks, and its embedding. No
file is ever changed: each `append` writes a new one under a name of its own, so that any number of processes may write
at once and none waits.
"""

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CracksError
from pipeline.files import replacing
from pipeline.models.projection import project

Embeddings = npt.NDArray[np.float32]  # (n, N_DIMENSIONS)

N_DIMENSIONS = 32
IMAGE_STATISTICS = ("brightness", "contrast", "sharpness", "dark_share", "bright_share")
SCHEMA = pa.schema(
    [
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("photo", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("probability", pa.float32(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False) for name in IMAGE_STATISTICS),
        pa.field("embedding", pa.list_(pa.float32(), N_DIMENSIONS), nullable=False),
    ]
)
MAX_MB = 1000
TIME_IN_NAME = "%Y%m%dT%H%M%S%fZ"


def embeddings_of(features: npt.NDArray[np.floating[Any]]) -> Embeddings:
    """Return the embeddings of features, (n, n_features), as the log keeps them."""
    return project(features, N_DIMENSIONS)


class PredictionLog:
    """The log in one folder; its oldest files go when it outgrows its limit."""

    def __init__(self, folder: Path, max_mb: float = MAX_MB) -> None:
        """Take the folder, which need not exist yet, and the most that its files may weigh together."""
        self.folder = folder
        self.max_mb = max_mb

    def append(self, rows: pd.DataFrame) -> None:
        """Write rows as a new file, whole or not at all; then drop the oldest files above the limit.

        Args:
            rows: with the columns of SCHEMA, of which `path` may be missing; `time` has a time zone, `embedding` holds
                an array of 32 numbers a row.

        Raises:
            ValueError: a column is missing, or its values are of another type.
        """
        if rows.empty:
            return
        table = to_table(rows)
        newest = rows["time"].max().tz_convert(UTC)
        name = f"{newest.strftime(TIME_IN_NAME)}-{secrets.token_hex(6)}.parquet"
        with replacing(self.folder / name) as partial:
            pq.write_table(table, partial, compression="zstd")
        self._rotate()

    def read(
        self, since: datetime | None = None, until: datetime | None = None, model_version: str | None = None
    ) -> pd.DataFrame:
        """Return the rows with since <= time < until, all by one model where it is given, oldest first.

        Raises:
            CracksError: a file in the folder is no file of this log.
        """
        tables = [table for path in self._files() if _may_hold(path, since) and (table := _read(path)) is not None]
        rows: pd.DataFrame = (pa.concat_tables(tables) if tables else SCHEMA.empty_table()).to_pandas()
        wanted = pd.Series(data=True, index=rows.index)
        if since is not None:
            wanted &= rows["time"] >= since
        if until is not None:
            wanted &= rows["time"] < until
        if model_version is not None:
            wanted &= rows["model_version"] == model_version
        return rows[wanted].sort_values("time", kind="stable", ignore_index=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.parquet") if not path.name.startswith("."))

    def _rotate(self) -> None:
        n_bytes_left = self.max_mb * 1e6
        for path in reversed(self._files()):
            try:
                n_bytes_left -= path.stat().st_size
                if n_bytes_left < 0:
                    path.unlink()
            except FileNotFoundError:  # another process drops files too
                continue


def to_table(rows: pd.DataFrame) -> pa.Table:
    """Return rows of the log in its schema. Raises ValueError where a column is missing or of another type."""
    missing = set(SCHEMA.names) - {"path"} - set(rows)
    if missing:
        raise ValueError(f"The prediction log needs the columns {', '.join(sorted(missing))}.")
    embeddings = np.stack(list(rows["embedding"])).astype(np.float32)  # (n, 32)
    if embeddings.shape[1:] != (N_DIMENSIONS,):
        raise ValueError(f"An embedding has {N_DIMENSIONS} numbers, these are of shape {embeddings.shape[1:]}.")
    n = len(rows)
    columns = {name: rows[name].tolist() if name in rows else [None] * n for name in SCHEMA.names}
    arrays = [
        pa.array(columns[field.name], field.type, from_pandas=True) for field in SCHEMA if field.name != "embedding"
    ]
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), N_DIMENSIONS))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _may_hold(path: Path, since: datetime | None) -> bool:
    """Return whether a file can have rows from `since` on: its name has the time of its newest row."""
    return since is None or path.name >= since.astimezone(UTC).strftime(TIME_IN_NAME)


def _read(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path, schema=SCHEMA)
    except FileNotFoundError:  # dropped meanwhile
        return None
    except (pa.ArrowInvalid, OSError) as error:
        raise CracksError(
            f"{path} is no file of a prediction log: {error}. Move it away; a log holds only what was appended."
        ) from None
