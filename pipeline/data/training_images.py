"""Which images and groups a model is trained on (train) or was chosen and calibrated with (validation)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.data.path_metadata import qualified_photos

# Stored with a registered model, so that later comparisons do not count these images as unseen.
TRAINING_IMAGES_FILE = "learned_from.parquet"  # the name that registered models of version 0.1.0 have
TRAINING_SIDES = ("train", "validation")

RowNumbers = npt.NDArray[np.int64]  # (n,), of an inventory


class Sides(NamedTuple):
    """Rows of a data set on the train and the validation side, each ascending."""

    train: RowNumbers
    validation: RowNumbers

    @property
    def rows(self) -> RowNumbers:
        """The rows of the train side, followed by those of validation."""
        return np.concatenate(self)


def training_rows(manifest: pd.DataFrame) -> dict[str, Sides]:
    """Return for each data set the rows of its inventory that are on the train and the validation side."""

    def rows_of(images: pd.DataFrame, side: str) -> RowNumbers:
        return np.sort(images.loc[images["split"] == side, "row"].to_numpy(np.int64))

    by_dataset = manifest[manifest["split"].isin(TRAINING_SIDES)].groupby("dataset")
    return {str(name): Sides(*(rows_of(images, side) for side in TRAINING_SIDES)) for name, images in by_dataset}


def images_of_side(manifest: pd.DataFrame, split: str, datasets: Path) -> LabelledImages:
    """Return the images on one side of the manifest, ordered by data set and row."""
    rows = manifest[manifest["split"] == split].sort_values(["dataset", "row"])
    return LabelledImages(rows[["dataset", "row", "label", "group"]], datasets)


def training_images(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the train and validation images of a manifest: columns sha256 and photo (may be missing)."""
    rows = manifest[manifest["split"].isin(TRAINING_SIDES)]
    return pd.DataFrame({"sha256": rows["sha256"], "photo": qualified_photos(rows)}).reset_index(drop=True)


def trained_groups(manifest: pd.DataFrame, trained_on: pd.DataFrame) -> frozenset[str]:
    """Return the groups of the current manifest with an image, or another tile of a photo, that a model has seen.

    `trained_on` are the `training_images` of the manifest that the model was trained and validated on.
    """
    photos = trained_on["photo"].dropna()
    is_seen = manifest["sha256"].isin(trained_on["sha256"]) | qualified_photos(manifest).isin(photos)
    return frozenset(manifest.loc[is_seen, "group"])
