"""Scores of a binary classifier, as functions of labels and probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.bool_]  # (n,), True for crack
Probabilities = npt.NDArray[np.floating[Any]]  # (n,), of a crack, 0..1

N_ECE_BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, 2017


def expected_calibration_error(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean gap, 0..1, between predicted probability and observed share of cracks, over 15 equal bins."""
    bins = np.minimum((probabilities * N_ECE_BINS).astype(int), N_ECE_BINS - 1)
    stated = np.bincount(bins, weights=probabilities, minlength=N_ECE_BINS)
    observed = np.bincount(bins, weights=labels, minlength=N_ECE_BINS)
    return float(np.abs(stated - observed).sum() / len(labels))


def log_loss(labels: Labels, probabilities: Probabilities, weights: Probabilities | None = None) -> float:
    """Return the (weighted) mean negative log-likelihood in nats; probabilities are clipped to 1e-7..1 - 1e-7."""
    from sklearn import metrics  # takes a second

    clipped = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(metrics.log_loss(labels, clipped, sample_weight=weights, labels=[False, True]))


def scores(labels: Labels, probabilities: Probabilities, threshold: float) -> dict[str, float | int | None]:
    """Return the scores by name; those that need both labels, auroc and balanced_accuracy, are None with only one."""
    from sklearn import metrics

    predicted = probabilities >= threshold
    both = 0 < labels.sum() < len(labels)
    return {
        "n": len(labels),
        "accuracy": float(np.mean(predicted == labels)),
        "f1": float(metrics.f1_score(labels, predicted, zero_division=0.0)),
        "auroc": float(metrics.roc_auc_score(labels, probabilities)) if both else None,
        "balanced_accuracy": float(metrics.balanced_accuracy_score(labels, predicted)) if both else None,
        "ece": expected_calibration_error(labels, probabilities),
        "threshold": threshold,
    }
