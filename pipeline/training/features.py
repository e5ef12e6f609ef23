"""Read the features that `embed` stores of a data set, NAME.npy, and their rows in its inventory, NAME.rows.npy."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.training_images import RowNumbers

Features = npt.NDArray[np.float16]  # (n, n_features); half precision rounds by 0.05 % and takes half the space


def features_file(folder: Path, name: str) -> Path:
    """Return the path of the features of a data set, float16, (n, n_features)."""
    return folder / f"{name}.npy"


def rows_file(folder: Path, name: str) -> Path:
    """Return the path of the inventory rows that the features belong to, int64, (n,)."""
    return folder / f"{name}.rows.npy"


def read_features(folder: Path, name: str, rows: RowNumbers) -> Features:
    """Return the features of `rows` of a data set's inventory. Raises KeyError if a row was not embedded."""
    embedded = np.load(rows_file(folder, name))
    missing = np.setdiff1d(rows, embedded)
    if len(missing):
        raise KeyError(f"{name} has no features of row {missing[0]} in {folder}: it is on neither train nor validation")
    features = np.load(features_file(folder, name), mmap_mode="r")
    order = np.argsort(embedded)
    return np.asarray(features[order[np.searchsorted(embedded, rows, sorter=order)]])


def features_of(images: pd.DataFrame, folder: Path) -> Features:
    """Return the features of images (dataset, row), of which those of a data set are consecutive.

    `folder` is that of one backbone. Raises KeyError if an image was not embedded.
    """
    by_dataset = images.groupby("dataset", sort=False)["row"]
    return np.concatenate([read_features(folder, str(name), rows.to_numpy()) for name, rows in by_dataset])
