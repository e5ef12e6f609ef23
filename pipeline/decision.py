"""From logits on validation to what the model says: calibration, threshold and review band."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from pipeline.metrics import Labels, Probabilities
from pipeline.params import Decide

Verdict = Literal["crack", "intact", "review"]

# How far limits stay away from the probabilities that they part: those of the exported graph differ by about 1e-6.
MARGIN = 1e-4


@dataclass(frozen=True)
class Decision:
    """When a probability reads as crack, as intact, or is for a person to look at.

    Attributes:
        threshold: from here on an image counts as crack in all scores.
        review_from: from here on, and below `review_to`, a person should look.
        review_to: from here on it is a crack for sure; below `review_from` it is intact for sure.

    """

    threshold: float
    review_from: float
    review_to: float

    def verdict(self, probability: float) -> Verdict:
        """Return what `probability` reads as."""
        if self.review_from <= probability < self.review_to:
            return "review"
        return "crack" if probability >= self.threshold else "intact"

    def as_dict(self) -> dict[str, float]:
        """Return the content of decision.json."""
        return asdict(self)


def fit_platt(labels: Labels, logits: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return (slope, intercept) with which sigmoid(slope * logit + intercept) is calibrated on these images.

    The targets are Platt's, pulled in from 0 and 1 by the count of each label, so that it stays finite where the
    labels are perfectly separated (Platt, Probabilistic Outputs for Support Vector Machines, 1999).

    Args:
        labels: (n,), both present.
        logits: (n,), higher means crack.

    """
    n_crack, n_intact = int(labels.sum()), int((~labels).sum())
    target = np.where(labels, (n_crack + 1) / (n_crack + 2), 1 / (n_intact + 2))  # (n,)
    # A soft target is a crack of weight t and an intact image of weight 1 - t. Newton's method, because the default
    # solver stops far too early where logits are small.
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8).fit(
        np.concatenate([logits, logits]).reshape(-1, 1).astype(np.float64),
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def choose_threshold(labels: Labels, probabilities: Probabilities, costs: Decide) -> float:
    """Return the threshold with the least total cost of missed cracks and false alarms on these images.

    Of equally cheap ones, the nearest (but for MARGIN) to the one that would be right if the probabilities were exact,
    false_alarm_cost / (false_alarm_cost + missed_crack_cost) (Elkan, The Foundations of Cost-Sensitive Learning, 2001).
    """
    exact = costs.false_alarm_cost / (costs.false_alarm_cost + costs.missed_crack_cost)
    values = np.unique(probabilities)  # sorted
    # A threshold that lies between two neighbouring values gives the same calls wherever it lies between them.
    low, high = np.concatenate([[0.0], values]), np.concatenate([values, [1.0]])  # (n_values + 1,)
    margin = np.minimum(MARGIN, (high - low) / 2)
    nearest = np.clip(exact, low + margin, high - margin)
    n_missed = np.searchsorted(np.sort(probabilities[labels]), nearest, side="left")
    n_false = (~labels).sum() - np.searchsorted(np.sort(probabilities[~labels]), nearest, side="left")
    cost = n_missed * costs.missed_crack_cost + n_false * costs.false_alarm_cost
    cheapest = nearest[cost == cost.min()]
    return float(cheapest[np.argmin(np.abs(cheapest - exact))])


def choose_decision(labels: Labels, probabilities: Probabilities, costs: Decide) -> Decision:
    """Return threshold and review band for these validation images.

    The band reaches down until at most `review_share_of_cracks` of the cracks lie below it, and up until at most
    `review_share_of_intact` of the intact images lie above it; it always holds the threshold or is empty at it.
    """
    threshold = choose_threshold(labels, probabilities, costs)
    cracks, intact = np.sort(probabilities[labels]), np.sort(probabilities[~labels])[::-1]
    lowest = float(cracks[min(int(costs.review_share_of_cracks * len(cracks)), len(cracks) - 1)])
    highest = float(intact[min(int(costs.review_share_of_intact * len(intact)), len(intact) - 1)])
    # Both images belong in the band.
    return Decision(
        threshold,
        review_from=min(max(lowest - MARGIN, 0.0), threshold),
        review_to=max(min(highest + MARGIN, 1.0), threshold),
    )
