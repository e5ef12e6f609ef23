"""The worst mistakes of a model, with their occlusion maps."""

from pathlib import Path

import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.evaluation.occlusion import Scorer, occlusion_map

N_PER_KIND = 6  # missed cracks and false alarms each, on the test side and on each external test set


def worst_mistakes(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return the rows of the most confident mistakes on the test side, then on each external test set.

    Each set has up to six missed cracks, then up to six false alarms, sorted from the most confident.

    Args:
        predictions: one row per image: dataset, split (test or external), label, probability (0..1).
        threshold: probability from which an image counts as a crack.
    """
    worst = []
    is_test = predictions["split"] == "test"
    for rows in (predictions[is_test], *(rows for _, rows in predictions[~is_test].groupby("dataset"))):
        is_crack, predicted = rows["label"] == "crack", rows["probability"] >= threshold
        worst.append(rows[is_crack & ~predicted].sort_values("probability").head(N_PER_KIND))
        worst.append(rows[~is_crack & predicted].sort_values("probability", ascending=False).head(N_PER_KIND))
    return pd.concat(worst)


def with_occlusion_maps(rows: pd.DataFrame, datasets: Path, score: Scorer) -> pd.DataFrame:
    """Return `rows` (dataset, row, label) with `occlusion_map`, the 49 values of each image's map, row by row."""
    images = LabelledImages(rows, datasets)
    maps = [occlusion_map(score, images.pixels(position)).ravel() for position in range(len(images))]
    return images.rows.assign(occlusion_map=pd.Series(maps, dtype=object))
