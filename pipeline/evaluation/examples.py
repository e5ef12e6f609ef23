"""Pictures for the report: the worst mistakes with where the model looked, and random predictions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.images import LabelledImages, Pixels
from pipeline.evaluation.occlusion_overlay import occlusion_overlay

N_PER_KIND = 6  # of right and of wrong predictions
SEED = 0


@dataclass(frozen=True)
class Picture:
    """An image and what the model said of it.

    Attributes:
        path: within its data set.
        dataset: name of its data set.
        label: crack or intact, the truth.
        probability: of a crack, 0..1.
        pixels: RGB, uint8, shape (height, width, 3), any size.
        overlay: the same picture under the map of where the model looked, where there is one.

    """

    path: str
    dataset: str
    label: str
    probability: float
    pixels: Pixels
    overlay: Pixels | None = None


def pictures_of(rows: pd.DataFrame, datasets: Path) -> Iterator[Picture]:
    """Yield the picture of each row, with `overlay` where the rows have an `occlusion_map`: a square, row by row."""
    images = LabelledImages(rows, datasets)
    for position, row in enumerate(images.rows.to_dict(orient="records")):
        pixels = images.pixels(position)
        overlay = None
        if "occlusion_map" in row:
            occlusion_map = np.reshape(row["occlusion_map"], (math.isqrt(len(row["occlusion_map"])), -1))
            overlay = occlusion_overlay(pixels, occlusion_map)
        yield Picture(row["path"], row["dataset"], row["label"], row["probability"], pixels, overlay)


def random_predictions(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return random ones of `rows`: six called right, then six called wrong, or all that there are."""
    right = (rows["label"] == "crack") == (rows["probability"] >= threshold)
    return pd.concat(
        [part.sample(min(N_PER_KIND, len(part)), random_state=SEED) for part in (rows[right], rows[~right])]
    )
