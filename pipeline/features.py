"""Features as `embed` keeps them: of each data set NAME.npy, and NAME.rows.npy, the rows of its inventory they are of.

Only what training reads is embedded. The test side and outside sets are seen by the finished model alone.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

LEARNED_FROM = ("train", "validation")

RowNumbers = npt.NDArray[np.int64]  # (n,), of an inventory


class Sides(NamedTuple):
    """What training reads of a data set, by side; both ascending."""

    train: RowNumbers
    validation: RowNumbers

    @property
    def rows(self) -> RowNumbers:
        """Those of the train side, then those of validation."""
        return np.concatenate(self)


def rows_learned_from(manifest: pd.DataFrame) -> dict[str, Sides]:
    """Return by data set the rows of its inventory that are on the train and the validation side."""

    def of(images: pd.DataFrame, side: str) -> RowNumbers:
        return np.sort(images.loc[images["split"] == side, "row"].to_numpy(np.int64))

    learned_from = manifest[manifest["split"].isin(LEARNED_FROM)]
    by_dataset = learned_from.groupby("dataset")
    return {str(name): Sides(*(of(images, side) for side in LEARNED_FROM)) for name, images in by_dataset}


def features_file(folder: Path, name: str) -> Path:
    """Return the file of the features of a data set, float16, (n, n_features)."""
    return folder / f"{name}.npy"


def rows_file(folder: Path, name: str) -> Path:
    """Return the file that tells of which rows of the inventory they are, int64, (n,)."""
    return folder / f"{name}.rows.npy"


def read_features(folder: Path, name: str, rows: RowNumbers) -> npt.NDArray[np.float16]:
    """Return the features of some rows of a data set's inventory, float16, (n, n_features).

    Raises:
        KeyError: a row was not embedded.
    """
    embedded = np.load(rows_file(folder, name))
    missing = np.setdiff1d(rows, embedded)
    if len(missing):
        raise KeyError(f"{name} has no features of row {missing[0]} in {folder}: it is on neither train nor validation")
    features = np.load(features_file(folder, name), mmap_mode="r")
    order = np.argsort(embedded)
    return np.asarray(features[order[np.searchsorted(embedded, rows, sorter=order)]])
