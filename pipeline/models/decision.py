"""From probabilities on validation to what the model says: threshold and review band."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.params import Decide

if TYPE_CHECKING:  # what serves a model needs the rule, and none of the scores
    from pipeline.models.metrics import Labels, Probabilities

DECISION_FILE = "decision.json"
Verdict = Literal["crack", "intact", "review"]

# How far limits stay away from the probabilities that they part: they are computed from features in half precision, and
# those of the exported graph differ by up to 1.3e-4 (METU, 3,833 images).
MARGIN = 1e-3


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


def load_decision(folder: Path) -> Decision:
    """Return the rule kept in `folder`. Raises OSError, ValueError or TypeError where there is none."""
    return Decision(**json.loads((folder / DECISION_FILE).read_text(encoding="utf-8")))


def choose_threshold(labels: "Labels", probabilities: "Probabilities", costs: Decide) -> float:
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


def choose_decision(labels: "Labels", probabilities: "Probabilities", costs: Decide) -> Decision:
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
