"""From a logit to the probability of a crack, for images like those of each data set.

On another structure the same logit means less: there most images are sound, and cracks are thinner than those that were
learned. One curve cannot be right for both. So each data set that has images on the validation side gets a curve of its
own, and each image takes of every curve by how much it looks like the images of that data set.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import softmax

from pipeline.models.linear_head import LinearHead, Scale
from pipeline.models.metrics import Labels

Values = npt.NDArray[np.floating[Any]]

# Weight of the squared norm, per image, of the heads that tell data sets apart. That is easy; the penalty keeps them
# from being sure of images that are like none.
MEMBERSHIP_PENALTY = 0.3
MAX_ITERATIONS = 1000


class Platt(NamedTuple):
    """probability = sigmoid(slope * logit + intercept) (Platt, Probabilistic Outputs for SVMs, 1999)."""

    slope: float
    intercept: float

    def probabilities(self, logits: Values) -> Values:
        """Return the probability of each logit, (n,)."""
        return np.asarray(1 / (1 + np.exp(-(self.slope * logits.astype(np.float64) + self.intercept))))


@dataclass(frozen=True)
class Calibration:
    """How a logit becomes a probability.

    Attributes:
        curves: one for each data set.
        membership: where there are several, for each of them a head on the features; the softmax of what they say is the
            share of the curves in the probability.
    """

    curves: tuple[Platt, ...]
    membership: tuple[LinearHead, ...] = ()

    def probabilities(self, logits: Values, features: Values) -> Values:
        """Return the probability of a crack of each image: logits (n,), features (n, n_features) -> (n,)."""
        by_curve = np.stack([curve.probabilities(logits) for curve in self.curves], axis=1)  # (n, n_curves)
        if not self.membership:
            return np.asarray(by_curve[:, 0])
        likeness = np.stack([head.logits(features).astype(np.float64) for head in self.membership], axis=1)
        return np.asarray((softmax(likeness) * by_curve).sum(axis=1))


def fit_platt(labels: Labels, logits: Values) -> Platt:
    """Return the curve that is calibrated on these images.

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
    return Platt(float(model.coef_[0, 0]), float(model.intercept_[0]))


def fit_calibration(labels: Labels, logits: Values, features: Values, datasets: npt.NDArray[np.str_]) -> Calibration:
    """Return the calibration of validation images.

    A data set with images of one label alone has no curve. Where none has both, there is one curve for all.

    Args:
        labels: (n,), True for crack.
        logits: (n,), of the classifier.
        features: (n, n_features), of its network.
        datasets: (n,), the name of the data set that an image is from.
    """
    with_both = [name for name in np.unique(datasets) if len(np.unique(labels[datasets == name])) == 2]
    parts = [datasets == name for name in with_both] or [np.ones(len(labels), bool)]
    curves = tuple(fit_platt(labels[part], logits[part]) for part in parts)
    if len(curves) == 1:
        return Calibration(curves)
    known = np.isin(datasets, with_both)
    return Calibration(curves, _fit_membership(features[known], datasets[known]))


def _fit_membership(features: Values, datasets: npt.NDArray[np.str_]) -> tuple[LinearHead, ...]:
    """Return for each data set, in the order of their names, the head whose softmax tells how like it an image is."""
    scale = Scale.of(features)
    model = LogisticRegression(C=1 / (MEMBERSHIP_PENALTY * len(datasets)), max_iter=MAX_ITERATIONS)
    model.fit(scale.standardised(features), datasets)
    coefficients, intercepts = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(intercepts) == 1:  # of two classes, scikit-learn keeps the logit of the second
        coefficients, intercepts = np.vstack([0 * coefficients, coefficients]), np.array([0.0, intercepts[0]])
    # A softmax knows differences alone; a first head of nought takes no room in the starter's file.
    coefficients, intercepts = coefficients - coefficients[0], intercepts - intercepts[0]
    return tuple(
        LinearHead.from_standardised(kernel, float(intercept), scale)
        for kernel, intercept in zip(coefficients, intercepts, strict=True)
    )
