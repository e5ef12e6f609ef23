"""The prediction log: a row for each image scored in production, as Parquet files in a folder, to detect drift.

Columns: time (UTC), model_version, source ("predict", "api" ...), photo (the photo that the image is part of, or the
image itself), path (of the image file, missing if there is none), probability, the image statistics and the embedding.
Each `append` writes a new file with a unique name, so any number of processes may write at the same time.
"""

import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
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
        *(pa.field(name, pa.string(), nullable=False) for name in ("model_version", "source", "photo")),
        pa.field("path", pa.string()),
        *(pa.field(name, pa.float32(), nullable=False) for name in ("probability", *IMAGE_STATISTICS)),
        pa.field("embedding", pa.list_(pa.float32(), N_DIMENSIONS), nullable=False),
    ]
)
TIME_IN_NAME = "%Y%m%dT%H%M%S%fZ"


def embeddings_of(features: npt.NDArray[np.floating[Any]]) -> Embeddings:
    """Return the embeddings of features, (n, n_features), as stored in the log."""
    return project(features, N_DIMENSIONS)


@dataclass(frozen=True)
class PredictionLog:
    """The prediction log in a folder, which need not exist; above `max_mb` megabytes its oldest files are deleted."""

    folder: Path
    max_mb: float = 1000

    def append(self, rows: pd.DataFrame) -> None:
        """Write rows with the columns of SCHEMA, `path` may be missing, to a new file; delete old ones above the limit.

        Raises ValueError if a column is missing, or its values are of another type.
        """
        if rows.empty:
            return
        table = to_table(rows)
        newest = rows["time"].max().tz_convert(UTC)
        name = f"{newest.strftime(TIME_IN_NAME)}-{secrets.token_hex(6)}.parquet"
        with replacing(self.folder / name) as partial:
            pq.write_table(table, partial, compression="zstd")
        keep_newest(reversed(self._files()), self.max_mb * 1e6)

    def read(
        self, since: datetime | None = None, until: datetime | None = None, model_version: str | None = None
    ) -> pd.DataFrame:
        """Return the rows with since <= time < until, of one model version if given, oldest first.

        Raises CracksError if a file in the folder does not belong to the log.
        """
        # a file is named by the time of its newest row
        oldest = since.astimezone(UTC).strftime(TIME_IN_NAME) if since else ""
        tables = [table for path in self._files() if path.name >= oldest and (table := _read(path)) is not None]
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


def keep_newest(paths: Iterable[Path], max_bytes: float) -> None:
    """Delete the files that exceed a total size; `paths` are newest first, and may be gone meanwhile."""
    for path in paths:
        with suppress(FileNotFoundError):  # deleted by another process
            max_bytes -= path.stat().st_size
            if max_bytes < 0:
                path.unlink()


def to_table(rows: pd.DataFrame) -> pa.Table:
    """Convert rows to the schema of the log. Raises ValueError if a column is missing or has another type."""
    missing = set(SCHEMA.names) - {"path"} - set(rows)
    if missing:
        raise ValueError(f"The prediction log needs the columns {', '.join(sorted(missing))}.")
    shape = np.stack(list(rows["embedding"])).shape[1:]
    if shape != (N_DIMENSIONS,):
        raise ValueError(f"An embedding has {N_DIMENSIONS} numbers, these are of shape {shape}.")
    # times as objects: of a column of times with a zone, Arrow takes `values`, which pandas deprecates
    complete = rows.reindex(columns=SCHEMA.names).astype({"time": object})
    return pa.Table.from_pandas(complete, SCHEMA, preserve_index=False).replace_schema_metadata()


def _read(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path, schema=SCHEMA)
    except FileNotFoundError:  # deleted meanwhile
        return None
    except (pa.ArrowInvalid, OSError) as error:
        raise CracksError(f"{path} is not a file of the prediction log: {error}. Move it out of the folder.") from None
