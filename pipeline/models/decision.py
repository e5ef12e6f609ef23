"""The decision rule, threshold and review band, and how it is chosen on validation images."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.params import Decide

if TYPE_CHECKING:  # serving a model needs the rule, but not scikit-learn, which the scores import
    from pipeline.models.metrics import Labels, Probabilities

DECISION_FILE = "decision.json"
Verdict = Literal["crack", "intact", "review"]

# Minimum distance of a limit from the probabilities that it separates. They are computed from features in half
# precision; those of the exported graph differ by up to 1.3e-4 (METU, 3,833 images).
MARGIN = 1e-3


@dataclass(frozen=True)
class Decision:
    """The rule that turns a probability into a verdict: crack, intact or review."""

    threshold: float  # probability from which an image counts as a crack in all scores
    review_from: float  # lower end of the review band; below it the verdict is intact
    review_to: float  # upper end of the review band, not included; from it on the verdict is crack

    def verdict(self, probability: float) -> Verdict:
        """Return the verdict for `probability`."""
        if self.review_from <= probability < self.review_to:
            return "review"
        return "crack" if probability >= self.threshold else "intact"

    def as_dict(self) -> dict[str, float]:
        """Return the content of decision.json."""
        return asdict(self)


def load_decision(folder: Path) -> Decision:
    """Return the rule stored in `folder`. Raises OSError, ValueError or TypeError if there is none."""
    return Decision(**json.loads((folder / DECISION_FILE).read_text(encoding="utf-8")))


def choose_threshold(labels: "Labels", probabilities: "Probabilities", costs: Decide) -> float:
    """Return the threshold with the least total cost of missed cracks and false alarms on these images.

    Among thresholds with equal cost, the nearest (up to MARGIN) to the optimum for exact probabilities is chosen:
    false_alarm_cost / (false_alarm_cost + missed_crack_cost) (Elkan, The Foundations of Cost-Sensitive Learning, 2001).
    """
    exact = costs.false_alarm_cost / (costs.false_alarm_cost + costs.missed_crack_cost)
    values = np.unique(probabilities)  # sorted
    # All thresholds between two neighbouring values give the same predictions.
    low, high = np.concatenate([[0.0], values]), np.concatenate([values, [1.0]])  # (n_values + 1,)
    margin = np.minimum(MARGIN, (high - low) / 2)
    nearest = np.clip(exact, low + margin, high - margin)
    n_missed = np.searchsorted(np.sort(probabilities[labels]), nearest, side="left")
    n_false = (~labels).sum() - np.searchsorted(np.sort(probabilities[~labels]), nearest, side="left")
    cost = n_missed * costs.missed_crack_cost + n_false * costs.false_alarm_cost
    cheapest = nearest[cost == cost.min()]
    return float(cheapest[np.argmin(np.abs(cheapest - exact))])


def choose_decision(labels: "Labels", probabilities: "Probabilities", costs: Decide) -> Decision:
    """Return the threshold and review band chosen on these validation images.

    The band reaches down until at most `review_share_of_cracks` of the cracks lie below it, and up until at most
    `review_share_of_intact` of the intact images lie above it. It contains the threshold, or is empty at the threshold.
    """
    threshold = choose_threshold(labels, probabilities, costs)
    cracks, intact = np.sort(probabilities[labels]), np.sort(probabilities[~labels])[::-1]
    lowest = float(cracks[min(int(costs.review_share_of_cracks * len(cracks)), len(cracks) - 1)])
    highest = float(intact[min(int(costs.review_share_of_intact * len(intact)), len(intact) - 1)])
    # Both images belong to the band.
    return Decision(
        threshold,
        review_from=min(max(lowest - MARGIN, 0.0), threshold),
        review_to=max(min(highest + MARGIN, 1.0), threshold),
    )
