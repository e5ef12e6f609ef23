"""Arrays that are computed in shards: a finished shard is a file, so that a killed computation can resume."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.files import replacing

SHARD_ROWS = 1024  # a few seconds of work: a killed run loses little, and the overhead of a shard is small

Rows = npt.NDArray[np.float16]  # (n, …)


class Shards:
    """The rows of an array, one for each image, in files of 1,024 rows in a folder."""

    def __init__(self, folder: Path, n_rows: int) -> None:
        self._folder = folder
        self._ranges = [range(start, min(n_rows, start + SHARD_ROWS)) for start in range(0, n_rows, SHARD_ROWS)]

    def _path(self, shard: range) -> Path:
        return self._folder / f"{shard.start:09}.npy"

    def missing(self) -> list[range]:
        """Return the positions of each shard that is not computed yet."""
        return [shard for shard in self._ranges if not self._path(shard).exists()]

    def save(self, shard: range, rows: Rows) -> None:
        """Write a finished shard atomically."""
        with replacing(self._path(shard)) as partial, partial.open("wb") as file:
            np.save(file, rows)

    def compute_missing(self, compute: Callable[[range], Rows], progress: str) -> None:
        """Compute and save each missing shard; `progress` labels the progress bar."""
        for shard in tqdm(self.missing(), desc=progress, unit=" shards", disable=None):
            self.save(shard, compute(shard))

    def arrays(self) -> list[Rows]:
        """Return all shards in order, read on demand."""
        return [np.load(self._path(shard), mmap_mode="r") for shard in self._ranges]
