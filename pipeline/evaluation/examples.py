"""Images for the report: the worst mistakes with their occlusion overlays, and random predictions.

Overlays are apart from the maps (occlusion.py), so that no change of style computes maps again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pipeline.data.images import LabelledImages, Pixels

N_PER_KIND = 6  # correct and wrong predictions each
FOR_CRACK, AGAINST_CRACK = (230, 60, 20), (30, 110, 230)  # RGB
MAX_OPACITY = 0.75


@dataclass(frozen=True)
class Picture:
    """An image and the model's prediction for it."""

    path: str  # within its data set
    dataset: str
    label: str  # the true one, crack or intact
    probability: float  # predicted, of a crack, 0..1
    pixels: Pixels  # RGB, uint8, (height, width, 3), of any size
    overlay: Pixels | None = None  # the image with its occlusion map


def pictures_of(rows: pd.DataFrame, datasets: Path) -> Iterator[Picture]:
    """Yield the picture of each row; it has an `overlay` if the rows have an `occlusion_map`, a flattened square."""
    images = LabelledImages(rows, datasets)
    for position, row in enumerate(images.rows.to_dict(orient="records")):
        pixels = images.pixels(position)
        overlay = None
        if "occlusion_map" in row:
            occlusion_map = np.reshape(row["occlusion_map"], (math.isqrt(len(row["occlusion_map"])), -1))
            overlay = occlusion_overlay(pixels, occlusion_map)
        yield Picture(row["path"], row["dataset"], row["label"], row["probability"], pixels, overlay)


def random_predictions(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return a random sample of `rows`: up to six correct predictions, then up to six wrong ones."""
    right = (rows["label"] == "crack") == (rows["probability"] >= threshold)
    return pd.concat([part.sample(min(N_PER_KIND, len(part)), random_state=0) for part in (rows[right], rows[~right])])


def occlusion_overlay(pixels: Pixels, occlusion_map: npt.NDArray[np.float64]) -> Pixels:
    """Return the image in grey with its map, (rows, columns), in logits: red for a crack (positive), blue against."""
    height, width, _ = pixels.shape
    strength = occlusion_map / max(float(np.abs(occlusion_map).max()), np.finfo(float).tiny)  # -1..1
    drawn = Image.fromarray(strength.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    opacity = np.asarray(drawn)[..., None] * MAX_OPACITY  # (height, width, 1)
    colour = np.where(opacity > 0, np.array(FOR_CRACK), np.array(AGAINST_CRACK))
    grey = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    blended: Pixels = (grey * (1 - np.abs(opacity)) + colour * np.abs(opacity)).round().astype(np.uint8)
    return blended
