"""Pictures for the report: the worst mistakes with where the model looked, and random predictions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.images import LabelledImages, Pixels
from pipeline.occlusion import heat_picture, occlusion_map
from pipeline.scoring import Scorer

N_A_KIND = 6  # of missed cracks and of false alarms, of right and of wrong predictions
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
        heat: the same picture under the map of where the model looked, where there is one.

    """

    path: str
    dataset: str
    label: str
    probability: float
    pixels: Pixels
    heat: Pixels | None = None


def _pictures(rows: pd.DataFrame, datasets: Path, score: Scorer | None = None) -> Iterator[Picture]:
    images = LabelledImages(rows, datasets)
    for position, row in enumerate(images.rows.to_dict(orient="records")):
        pixels = images.pixels(position)
        heat = None if score is None else heat_picture(pixels, occlusion_map(score, pixels))
        yield Picture(row["path"], row["dataset"], row["label"], row["probability"], pixels, heat)


def worst_mistakes(rows: pd.DataFrame, threshold: float, datasets: Path, score: Scorer) -> list[Picture]:
    """Return the most confident mistakes among `rows`, six of each kind: missed cracks, then false alarms."""
    crack, called = rows["label"] == "crack", rows["probability"] >= threshold
    missed = rows[crack & ~called].sort_values("probability").head(N_A_KIND)
    false = rows[~crack & called].sort_values("probability", ascending=False).head(N_A_KIND)
    return list(_pictures(pd.concat([missed, false]), datasets, score))


def random_predictions(rows: pd.DataFrame, threshold: float, datasets: Path) -> list[Picture]:
    """Return random images of `rows`: six called right, then six called wrong, or all that there are."""
    right = (rows["label"] == "crack") == (rows["probability"] >= threshold)
    drawn = [part.sample(min(N_A_KIND, len(part)), random_state=SEED) for part in (rows[right], rows[~right])]
    return list(_pictures(pd.concat(drawn), datasets))
