"""Features as `embed` keeps them: of each data set NAME.npy, and NAME.rows.npy, the rows of its inventory they are of.

Only what training reads is embedded. The test side and external test sets are seen by the finished model alone.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.training_images import RowNumbers

Features = npt.NDArray[np.float16]  # (n, n_features); half precision rounds by 0.05 % and halves what is kept


def features_file(folder: Path, name: str) -> Path:
    """Return the file of the features of a data set, float16, (n, n_features)."""
    return folder / f"{name}.npy"


def rows_file(folder: Path, name: str) -> Path:
    """Return the file that tells of which rows of the inventory they are, int64, (n,)."""
    return folder / f"{name}.rows.npy"


def read_features(folder: Path, name: str, rows: RowNumbers) -> Features:
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


def features_of(images: pd.DataFrame, folder: Path) -> Features:
    """Return the features of images of several data sets, float16, (n, n_features).

    Args:
        images: columns dataset and row; all images of a data set one after the other.
        folder: of one backbone.

    Raises:
        KeyError: an image was not embedded.
    """
    by_dataset = images.groupby("dataset", sort=False)["row"]
    return np.concatenate([read_features(folder, str(name), rows.to_numpy()) for name, rows in by_dataset])
