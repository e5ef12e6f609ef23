"""The worst mistakes of a model, each with where the model looked."""

from pathlib import Path

import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.evaluation.occlusion import occlusion_map
from pipeline.evaluation.scoring import Scorer

N_PER_KIND = 6  # of missed cracks and of false alarms, of test and of each external test set


def worst_mistakes(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return the rows of the most confident mistakes: of test, then of each external test set, up to six of each kind.

    Missed cracks come first, then false alarms, each from the most confident on.

    Args:
        predictions: a row an image: dataset, split (test or external), label, probability (0..1).
        threshold: from which an image counts as crack.
    """
    is_test = predictions["split"] == "test"
    external = predictions[~is_test].groupby("dataset")
    return pd.concat([_worst(predictions[is_test], threshold), *(_worst(rows, threshold) for _, rows in external)])


def _worst(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
    is_crack, called = rows["label"] == "crack", rows["probability"] >= threshold
    missed = rows[is_crack & ~called].sort_values("probability").head(N_PER_KIND)
    false = rows[~is_crack & called].sort_values("probability", ascending=False).head(N_PER_KIND)
    return pd.concat([missed, false])


def with_occlusion_maps(rows: pd.DataFrame, datasets: Path, score: Scorer) -> pd.DataFrame:
    """Return `rows` with a column `occlusion_map`: the 49 values of `occlusion_map`, row by row.

    Args:
        rows: a row an image: dataset, row, label.
        datasets: folder with a folder per data set.
        score: from a batch of images to the probabilities of a crack.
    """
    images = LabelledImages(rows, datasets)
    maps = [occlusion_map(score, images.pixels(position)).ravel() for position in range(len(images))]
    return images.rows.assign(occlusion_map=pd.Series(maps, dtype=object))
