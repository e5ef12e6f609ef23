"""Scores with 95 % intervals by the bootstrap over groups, because images of a photo, or copies, are not independent.

Percentile method (Efron and Tibshirani, An Introduction to the Bootstrap, 1993) on complete groups (Field and Welsh,
Bootstrapping clustered data, 2007).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.decision import Decision
from pipeline.models.metrics import N_ECE_BINS, Labels, Probabilities

Floats = npt.NDArray[np.float64]

N_RESAMPLES = 1000
MIN_GROUPS = 5  # with fewer, the variation between groups cannot be estimated
MAX_FALSE_ALARMS = 0.05  # of the intact images, for `missed_at_5_percent`
MIN_DEFINED_SHARE = 0.95  # of the resamples; a score that is undefined in more has no interval
VALUES_AT_A_TIME = 500_000  # images times resamples per step, so that they fit the CPU's cache

SCORES = (
    "accuracy",
    "precision",
    "recall",
    "f1",
    "auroc",
    "average_precision",
    "missed_at_5_percent",
    "balanced_accuracy",
    "ece",
    "balanced_precision",
    "balanced_f1",
    "balanced_ece",
    "review_share",
    "missed_with_review",
)


def weighted_scorer(
    labels: Labels, probabilities: Probabilities, groups: npt.NDArray[np.int64], decision: Decision
) -> Callable[[Floats], dict[str, Floats]]:
    """Return a function from weights of the groups, (n_resamples, n_groups), to each of SCORES, (n_resamples,) or NaN.

    In balanced scores, cracked and intact images have the same total weight. `review_share` is the share of images for
    review, `missed_with_review` the share of cracks called intact, `missed_at_5_percent` that of cracks missed at the
    lowest threshold with at most 5 % of false alarms; all other scores are at the threshold of `decision`. `groups` are
    numbers from 0, (n,).
    """
    is_above = [probabilities >= limit for limit in (decision.threshold, decision.review_from, decision.review_to)]
    bins = np.minimum((probabilities * N_ECE_BINS).astype(int), N_ECE_BINS - 1)
    in_bin = bins[:, None] == np.arange(N_ECE_BINS)  # (n, n_bins)
    excess = in_bin * (probabilities.astype(np.float64) - labels)[:, None]  # predicted minus observed
    per_image = np.hstack([np.stack([np.ones(len(labels)), *is_above], axis=1), excess])  # (n, 4 + n_bins)
    n_groups = int(groups.max()) + 1
    crack_sums, intact_sums = np.zeros((2, n_groups, per_image.shape[1]))
    np.add.at(crack_sums, groups[labels], per_image[labels])
    np.add.at(intact_sums, groups[~labels], per_image[~labels])
    rank = _ranking_scorer(labels, probabilities, groups)

    def score(weights: Floats) -> dict[str, Floats]:
        cracks, intact = weights @ crack_sums, weights @ intact_sums  # (n_resamples, 4 + n_bins)
        n_crack, n_intact, both = cracks[:, :1], intact[:, :1], cracks + intact
        with np.errstate(divide="ignore", invalid="ignore"):
            halves = cracks[:, 4:] / (2 * n_crack) + intact[:, 4:] / (2 * n_intact)
            return {
                **_threshold_scores(cracks[:, 1], intact[:, 1], cracks[:, 0], intact[:, 0]),
                **rank(weights),
                "ece": np.abs(both[:, 4:]).sum(axis=1) / both[:, 0],
                "balanced_ece": np.abs(halves).sum(axis=1),
                "review_share": (both[:, 2] - both[:, 3]) / both[:, 0],
                "missed_with_review": 1 - cracks[:, 2] / cracks[:, 0],
            }

    return score


def _threshold_scores(found: Floats, false_alarms: Floats, n_crack: Floats, n_intact: Floats) -> dict[str, Floats]:
    recall, fallout = found / n_crack, false_alarms / n_intact
    return {
        "accuracy": (found + n_intact - false_alarms) / (n_crack + n_intact),
        "precision": found / (found + false_alarms),
        "recall": recall,
        "f1": 2 * found / (found + false_alarms + n_crack),
        "balanced_accuracy": (recall + 1 - fallout) / 2,
        "balanced_precision": recall / (recall + fallout),
        "balanced_f1": 2 * recall / (recall + fallout + 1),
    }


def _ranking_scorer(
    labels: Labels, probabilities: Probabilities, groups: npt.NDArray[np.int64]
) -> Callable[[Floats], dict[str, Floats]]:
    """Return the part of `weighted_scorer` that depends only on the order of the probabilities."""
    # found cracks and false alarms are cumulated at the distinct probabilities of cracks, in descending order
    order = np.argsort(-probabilities, kind="stable")
    cracks, intact = order[labels[order]], order[~labels[order]]
    thresholds = -np.unique(-probabilities[cracks])
    # number of cracks and of intact images at or above each threshold, and of intact images above it
    n_found = np.searchsorted(-probabilities[cracks], -thresholds, side="right")
    n_false = np.searchsorted(-probabilities[intact], -thresholds, side="right")
    n_above = np.searchsorted(-probabilities[intact], -thresholds, side="left")

    def rank(weights: Floats) -> dict[str, Floats]:
        found, false_alarms = _cumulative_weights(weights, groups[cracks]), _cumulative_weights(weights, groups[intact])
        total_crack, total_intact = found[:, -1], false_alarms[:, -1]
        found, above, false_alarms = found[:, n_found], false_alarms[:, n_above], false_alarms[:, n_false]
        most_found = (found * (false_alarms <= MAX_FALSE_ALARMS * total_intact[:, None])).max(axis=1, initial=0)
        more_found = np.diff(found, axis=1, prepend=0)
        precision = found / np.maximum(found + false_alarms, np.finfo(float).tiny)
        out_of_order = np.einsum("ij,ij->i", more_found, above + false_alarms) / 2  # a tie counts half
        return {
            "auroc": 1 - out_of_order / (total_crack * total_intact),
            "average_precision": np.einsum("ij,ij->i", more_found, precision) / total_crack,
            "missed_at_5_percent": np.where(total_intact > 0, 1 - most_found / total_crack, np.nan),
        }

    return rank


def _cumulative_weights(weights: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    """Return the cumulative weights of images with these groups, starting with 0, (n_resamples, n + 1)."""
    cumulated = np.zeros((len(weights), len(groups) + 1))
    np.cumsum(weights[:, groups], axis=1, out=cumulated[:, 1:])
    return cumulated


def resampled_groups(n_groups: int, n_images: int) -> Iterator[Floats]:
    """Yield how often each group is drawn, in parts of (n_resamples, n_groups), N_RESAMPLES resamples in total."""
    rng = np.random.default_rng(0)
    at_a_time = max(1, VALUES_AT_A_TIME // n_images)
    for start in range(0, N_RESAMPLES, at_a_time):
        n = min(at_a_time, N_RESAMPLES - start)
        drawn = rng.integers(n_groups, size=(n, n_groups)) + n_groups * np.arange(n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups).astype(float)


def scores_with_intervals(
    labels: Labels, probabilities: Probabilities, groups: npt.NDArray[Any], decision: Decision
) -> dict[str, Any]:
    """Return n, n_groups, prevalence, each of SCORES, and `interval`: for each score its "low" and "high", or None.

    `groups` are names or numbers, (n,), n > 0. A score is None if it is undefined: without cracks, without intact
    images, or without images predicted as cracks. An interval is None if there are fewer than 5 groups, if the score is
    undefined in more than 5 % of the resamples, or if it is the same in all (as without mistakes, which does not prove
    that the score is certain). Resampling adds noise to the bins of the ECE, so its interval is a little too high and
    can lie above the score.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    score = weighted_scorer(labels, probabilities, numbers, decision)
    result: dict[str, Any] = {"n": len(labels), "n_groups": len(names), "prevalence": float(labels.mean())}
    for name, (value,) in score(np.ones((1, len(names)))).items():
        result[name] = float(value) if np.isfinite(value) else None
    result["interval"] = dict.fromkeys(SCORES)
    if len(names) >= MIN_GROUPS:
        resampled = [score(weights) for weights in resampled_groups(len(names), len(labels))]
        for name in SCORES:
            values = np.concatenate([part[name] for part in resampled])
            defined = values[np.isfinite(values)]
            if result[name] is not None and len(defined) >= MIN_DEFINED_SHARE * N_RESAMPLES:
                low, high = np.percentile(defined, [2.5, 97.5])
                if low < high:
                    result["interval"][name] = {"low": float(low), "high": float(high)}
    return result


@dataclass(frozen=True)
class Difference:
    """The difference between two models' weighted accuracies; positive if the first is better."""

    value: float  # weighted accuracy of the first model minus that of the second, -1..1
    low: float  # lower end of the one-sided 97.5 % interval
    confidence: float  # share of the resamples, 0..1, in which the first is better; a tie counts half


def weighted_accuracy(labels: Labels, is_right: npt.NDArray[np.bool_], crack_weight: float) -> float:
    """Return the mean of recall and specificity, 0..1, weighted by `crack_weight` and 1 - `crack_weight`.

    So each label counts by the cost of a mistake, not by its share of the images; with a weight of 1/2 this is the
    balanced accuracy. If only one label occurs, it is the accuracy on that label; without images it is NaN.
    """
    shares = [(weight, is_right[part].mean()) for part, weight in ((labels, crack_weight), (~labels, 1 - crack_weight))
              if part.any()]  # fmt: skip
    total = sum(weight for weight, _ in shares)
    return float(sum(weight * share for weight, share in shares) / total) if total else math.nan


def paired_difference(
    labels: Labels,
    first_is_right: npt.NDArray[np.bool_],
    second_is_right: npt.NDArray[np.bool_],
    groups: npt.NDArray[Any],
    crack_weight: float,
) -> Difference:
    """Return the difference of two models' weighted accuracies on the same images, with an interval over groups.

    A resample that lacks a label counts as a difference of -1, the worst for the first model. All arrays have the shape
    (n,), n > 0; both labels must occur. `crack_weight` is that of `weighted_accuracy`.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    gained = first_is_right.astype(np.float64) - second_is_right
    columns = np.stack([labels, ~labels, gained * labels, gained * ~labels], axis=1)  # (n, 4)
    sums = np.zeros((len(names), 4))
    np.add.at(sums, numbers, columns)

    def difference(weights: Floats) -> Floats:
        n_crack, n_intact, gained_cracks, gained_intact = (weights @ sums).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(crack_weight * gained_cracks / n_crack + (1 - crack_weight) * gained_intact / n_intact)

    drawn = resampled_groups(len(names), len(labels))
    resampled = np.nan_to_num(np.concatenate([difference(weights) for weights in drawn]), nan=-1.0)
    return Difference(
        value=float(difference(np.ones((1, len(names)))).item()),
        low=float(np.percentile(resampled, 2.5)),
        confidence=float(np.mean(resampled > 0) + np.mean(resampled == 0) / 2),
    )
