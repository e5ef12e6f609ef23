"""Features as `embed` keeps them: of each data set NAME.npy, and NAME.rows.npy, the rows of its inventory they are of.

Only what training reads is embedded. The test side and outside sets are seen by the finished model alone.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

LEARNED_FROM = ("train", "validation")

RowNumbers = npt.NDArray[np.int64]  # (n,), ascending, of an inventory


def rows_learned_from(manifest: pd.DataFrame) -> dict[str, RowNumbers]:
    """Return by data set the rows of its inventory that are on the train or the validation side."""
    learned_from = manifest[manifest["split"].isin(LEARNED_FROM)]
    return {str(name): np.sort(images["row"].to_numpy()) for name, images in learned_from.groupby("dataset")}


def features_file(folder: Path, name: str) -> Path:
    """Return the file of the features of a data set, float16, (n, n_features)."""
    return folder / f"{name}.npy"


def rows_file(folder: Path, name: str) -> Path:
    """Return the file that tells of which rows of the inventory they are, int64, (n,), ascending."""
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
    return np.asarray(features[np.searchsorted(embedded, rows)])
