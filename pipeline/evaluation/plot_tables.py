"""The tables that `dvc plots` draws."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.evaluation.plots import ScoredSet, reliability_table

MAX_CURVE_POINTS = 500  # more are not visible in a plot


def plot_tables(test: ScoredSet, threshold: float, histories: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables by name.

    Four describe the test set: roc (fpr, tpr), precision_recall (recall, precision), reliability (see
    `reliability_table`) and confusion (actual, predicted; one row per image). training has one row per epoch or
    penalty: candidate, step, loss, val_loss.
    """
    fpr, tpr, _ = roc_curve(test.labels, test.probabilities)
    precision, recall, _ = precision_recall_curve(test.labels, test.probabilities)
    training = pd.concat([history.assign(candidate=name) for name, history in histories.items()])
    return {
        "roc": _downsample(pd.DataFrame({"fpr": fpr, "tpr": tpr})),
        "precision_recall": _downsample(pd.DataFrame({"recall": recall, "precision": precision})),
        "reliability": reliability_table(test),
        "confusion": pd.DataFrame(
            {
                "actual": np.where(test.labels, "crack", "intact"),
                "predicted": np.where(test.probabilities >= threshold, "crack", "intact"),
            }
        ),
        "training": training[["candidate", "step", "loss", "val_loss"]],
    }


def _downsample(curve: pd.DataFrame) -> pd.DataFrame:
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, MAX_CURVE_POINTS).round().astype(int))]
