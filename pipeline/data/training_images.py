"""Training images: which rows of the manifest a model is trained on, and which groups it has thereby seen."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.data.path_metadata import qualified_photos

# Travels with a registered model, so that no later test counts these images as unseen.
TRAINING_IMAGES_FILE = "learned_from.parquet"  # as version 0.1.0 called it: registered models have it so
TRAINING_SIDES = ("train", "validation")

RowNumbers = npt.NDArray[np.int64]  # (n,), of an inventory


class Sides(NamedTuple):
    """What training reads of a data set, by side; both ascending."""

    train: RowNumbers
    validation: RowNumbers

    @property
    def rows(self) -> RowNumbers:
        """Those of the train side, then those of validation."""
        return np.concatenate(self)


def training_rows(manifest: pd.DataFrame) -> dict[str, Sides]:
    """Return by data set the rows of its inventory that are on the train and the validation side."""

    def of(images: pd.DataFrame, side: str) -> RowNumbers:
        return np.sort(images.loc[images["split"] == side, "row"].to_numpy(np.int64))

    by_dataset = manifest[manifest["split"].isin(TRAINING_SIDES)].groupby("dataset")
    return {str(name): Sides(*(of(images, side) for side in TRAINING_SIDES)) for name, images in by_dataset}


def images_of_side(manifest: pd.DataFrame, split: str, datasets: Path) -> LabelledImages:
    """Return one side of the manifest, data sets one after the other."""
    rows = manifest[manifest["split"] == split].sort_values(["dataset", "row"])
    return LabelledImages(rows[["dataset", "row", "label", "group"]], datasets)


def training_images(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the images that a model trained on this manifest learns from, columns sha256 and photo (or missing)."""
    rows = manifest[manifest["split"].isin(TRAINING_SIDES)]
    return pd.DataFrame({"sha256": rows["sha256"], "photo": qualified_photos(rows)}).reset_index(drop=True)


def trained_groups(manifest: pd.DataFrame, learned: pd.DataFrame) -> frozenset[str]:
    """Return today's groups with an image from which a model has learned, or of a photo that it has seen.

    Args:
        manifest: today's, with columns dataset, photo, sha256 and group.
        learned: of `training_images`, when the model was registered.
    """
    is_known = manifest["sha256"].isin(learned["sha256"]) | qualified_photos(manifest).isin(learned["photo"].dropna())
    return frozenset(manifest.loc[is_known, "group"])
