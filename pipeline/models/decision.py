"""The decision rule, threshold and review band, and how it is chosen on validation images."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import CracksError
from pipeline.params import Decide

if TYPE_CHECKING:  # serving a model needs the rule, but not scikit-learn, which the scores import
    from pipeline.models.metrics import Labels, Probabilities

DECISION_FILE = "decision.json"
Verdict = Literal["crack", "intact", "review"]
Floats = npt.NDArray[np.float64]

# Minimum distance of a limit from the probabilities that it separates. They are computed from features in half
# precision; those of the exported graph differ by up to 1.3e-4 (METU, 3,833 images).
MARGIN = 1e-3


@dataclass(frozen=True)
class Decision:
    """The rule that turns a probability into a verdict: crack, intact or review."""

    threshold: float  # probability from which an image counts as a crack in all scores
    review_from: float  # lower end of the review band; below it the verdict is intact
    review_to: float  # upper end of the review band, not included; from it on the verdict is crack
    # None in models that were registered before these were recorded:
    prevalence: float | None = None  # share of cracks that the probabilities assume
    review_budget: float | None = None  # share of images that may be for review

    def verdict(self, probability: float) -> Verdict:
        """Return the verdict for `probability`."""
        if self.review_from <= probability < self.review_to:
            return "review"
        return "crack" if probability >= self.threshold else "intact"

    def correction(self, stated: float | None) -> dict[str, float]:
        """Return "assumed_prevalence" and "prevalence", from and to which probabilities are corrected; {} without one.

        Raises CracksError if a prevalence is stated, and it is not recorded which one the probabilities assume.
        """
        if stated is None:
            return {}
        if self.prevalence is None:
            raise CracksError(
                "It is not recorded what share of cracks this model assumes, so its probabilities cannot be corrected "
                "for another one. Leave the prevalence out, or train and register the model again."
            )
        return {"assumed_prevalence": self.prevalence, "prevalence": stated}

    def as_dict(self) -> dict[str, float]:
        """Return the content of decision.json."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def load_decision(folder: Path) -> Decision:
    """Return the rule stored in `folder`. Raises OSError, ValueError or TypeError if there is none."""
    return Decision(**json.loads((folder / DECISION_FILE).read_text(encoding="utf-8")))


def at_prevalence(
    probabilities: npt.NDArray[np.floating[Any]], assumed_prevalence: float, prevalence: float
) -> npt.NDArray[np.float32]:
    """Return probabilities, (n,), that assume one share of cracks, corrected for another one; both 0..1, excluded.

    odds' = odds * [P / (1 - P)] / [P0 / (1 - P0)], with P0 assumed (Saerens, Latinne and Decaestecker, Adjusting the
    Outputs of a Classifier to New a Priori Probabilities, 2002, equation 4). Mistakes cost the same as before, so the
    threshold stays.
    """
    exact = probabilities.astype(np.float64)
    crack = exact * (prevalence / assumed_prevalence)
    intact = (1 - exact) * ((1 - prevalence) / (1 - assumed_prevalence))
    return np.asarray(crack / (crack + intact), np.float32)


def prevalence_weights(labels: "Labels", datasets: npt.NDArray[np.str_], prevalence: float | None) -> Floats:
    """Return a weight for each image, (n,), with which cracks have this share in each data set; all 1 if it is None.

    A crack weighs P / P0 and an intact image (1 - P) / (1 - P0), with P0 the share in the data set (Elkan, The
    Foundations of Cost-Sensitive Learning, 2001, section 2). A data set with both labels keeps its total weight.
    """
    weights = np.ones(len(labels))
    if prevalence is None:
        return weights
    for name in np.unique(datasets):
        for chosen, share in ((labels, prevalence), (~labels, 1 - prevalence)):
            part = chosen & (datasets == name)
            weights[part] = share * (datasets == name).sum() / max(1, part.sum())
    return weights


def choose_threshold(labels: "Labels", probabilities: "Probabilities", weights: Floats, costs: Decide) -> float:
    """Return the threshold with the least total cost of missed cracks and false alarms on these weighted images.

    Among thresholds with equal cost, the nearest (up to MARGIN) to the optimum for exact probabilities is chosen:
    false_alarm_cost / (false_alarm_cost + missed_crack_cost) (Elkan, The Foundations of Cost-Sensitive Learning, 2001).
    """
    exact = costs.false_alarm_cost / (costs.false_alarm_cost + costs.missed_crack_cost)
    values = np.unique(probabilities)  # sorted
    # All thresholds between two neighbouring values give the same predictions.
    low, high = np.concatenate([[0.0], values]), np.concatenate([values, [1.0]])  # (n_values + 1,)
    margin = np.minimum(MARGIN, (high - low) / 2)
    nearest = np.clip(exact, low + margin, high - margin)
    missed, intact = (_weight_below(nearest, probabilities[part], weights[part]) for part in (labels, ~labels))
    cost = missed * costs.missed_crack_cost + (weights[~labels].sum() - intact) * costs.false_alarm_cost
    cheapest = nearest[np.isclose(cost, cost.min(), rtol=1e-12, atol=1e-9)]  # sums of weights are rounded
    return float(cheapest[np.argmin(np.abs(cheapest - exact))])


def _weight_below(limits: Floats, probabilities: "Probabilities", weights: Floats) -> Floats:
    """Return the total weight of the images with a probability below each limit, (n_limits,)."""
    order = np.argsort(probabilities)
    total = np.concatenate([[0.0], np.cumsum(weights[order])])
    return np.asarray(total[np.searchsorted(probabilities[order], limits, side="left")])


def choose_decision(
    labels: "Labels", probabilities: "Probabilities", datasets: npt.NDArray[np.str_], costs: Decide
) -> Decision:
    """Return the threshold and review band chosen on validation images; labels, probabilities and data sets are (n,).

    The band has the images with the highest expected cost (Chow, On Optimum Recognition Error and Reject Tradeoff,
    1970): p * missed_crack_cost below the threshold, (1 - p) * false_alarm_cost from it on. It catches as many mistakes
    as the budget allows, and is no wider than that needs. The budget holds for the total weight of the images, and in
    each data set that is large enough for one image.
    """
    weights = prevalence_weights(labels, datasets, costs.prevalence)
    threshold = choose_threshold(labels, probabilities, weights, costs)
    called, budget = probabilities >= threshold, costs.review_budget
    cost = np.where(called, (1 - probabilities) * costs.false_alarm_cost, probabilities * costs.missed_crack_cost)
    parts = [np.ones(len(labels), bool)]
    parts += [part for name in np.unique(datasets) if (part := datasets == name).sum() * budget >= 1]
    low = high = threshold
    for level in np.unique(cost[called != labels]):  # of mistakes; the first would be the last to enter the band
        is_in = cost >= level
        if all(weights[is_in & part].sum() <= budget * weights[part].sum() for part in parts):
            low = _limit(level / costs.missed_crack_cost, probabilities[~called & ~is_in].max(initial=0.0))
            high = _limit(1 - level / costs.false_alarm_cost, probabilities[called & ~is_in].min(initial=1.0))
            break
    prevalence = float(labels.mean()) if costs.prevalence is None else costs.prevalence
    return Decision(threshold, min(low, threshold), max(high, threshold), prevalence, budget)


def _limit(inside: float, outside: float) -> float:
    """Return a limit between the last probability in the band and the next one, MARGIN from the former if it can be."""
    return float(inside + np.clip((outside - inside) / 2, -MARGIN, MARGIN))
