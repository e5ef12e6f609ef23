"""From a logit to the probability of a crack, for images like those trained on and for others.

On another structure the same logit means less: there most images are sound, and cracks are thinner than those that were
learned. One curve cannot be right for both. So where outside sets lend photos to validation, these get a curve of their
own, and each image takes of both curves by how much it looks like the lent photos.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from pipeline.linear import LinearHead, Scale
from pipeline.metrics import Labels

Values = npt.NDArray[np.floating[Any]]

# Weight of the squared norm, per image, of the head that tells lent photos from images like those trained on. That is
# easy; the penalty keeps it from being sure of images that are like neither.
STRANGENESS_PENALTY = 0.3
MAX_ITERATIONS = 1000


class Platt(NamedTuple):
    """probability = sigmoid(slope * logit + intercept) (Platt, Probabilistic Outputs for SVMs, 1999)."""

    slope: float
    intercept: float

    def probabilities(self, logits: Values) -> Values:
        """Return the probability of each logit, (n,)."""
        return _sigmoid(self.slope * logits.astype(np.float64) + self.intercept)


@dataclass(frozen=True)
class Foreign:
    """What holds for images that look like the photos that outside sets have lent.

    Attributes:
        curve: their calibration.
        strangeness: of features, the logit of the share that this curve has in the probability.
    """

    curve: Platt
    strangeness: LinearHead


@dataclass(frozen=True)
class Calibration:
    """The curve of images like those trained on and, where some were lent, what holds for images from outside."""

    curve: Platt
    foreign: Foreign | None = None

    def probabilities(self, logits: Values, features: Values) -> Values:
        """Return the probability of a crack of each image: logits (n,), features (n, n_features) -> (n,)."""
        near = self.curve.probabilities(logits)
        if self.foreign is None:
            return near
        share = _sigmoid(self.foreign.strangeness.logits(features).astype(np.float64))
        return near + share * (self.foreign.curve.probabilities(logits) - near)


def fit_platt(labels: Labels, logits: Values) -> tuple[float, float]:
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


def fit_calibration(labels: Labels, logits: Values, features: Values, lent: npt.NDArray[np.bool_]) -> Calibration:
    """Return the calibration of validation images.

    Args:
        labels: (n,), True for crack.
        logits: (n,), of the classifier.
        features: (n, n_features), of its network.
        lent: (n,), True for images of photos that outside sets have lent.
    """
    if len(set(labels[lent].tolist())) < 2:
        return Calibration(Platt(*fit_platt(labels[~lent], logits[~lent])))
    scale = Scale.of(features)
    model = LogisticRegression(C=1 / (STRANGENESS_PENALTY * len(lent)), max_iter=MAX_ITERATIONS)
    model.fit(scale.standardised(features), lent)
    strangeness = LinearHead.on_plain_features(model.coef_[0].astype(np.float64), float(model.intercept_[0]), scale)
    return Calibration(
        Platt(*fit_platt(labels[~lent], logits[~lent])),
        Foreign(Platt(*fit_platt(labels[lent], logits[lent])), strangeness),
    )


def _sigmoid(values: Values) -> Values:
    return np.asarray(1 / (1 + np.exp(-values)))
