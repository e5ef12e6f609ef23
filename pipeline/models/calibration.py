"""Calibration: turning a logit into the probability of a crack, with one Platt curve for each data set.

The curves are weighted by how similar the image is to each data set (docs/decisions/0004-a-curve-for-each-data-set.md).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import softmax

from pipeline.models.linear_head import LinearHead, Scale
from pipeline.models.metrics import Labels
from pipeline.models.tf import keras

Values = npt.NDArray[np.floating[Any]]

# L2 penalty, per image, of the heads that tell data sets apart. Telling them apart is easy; without the penalty the
# heads would also be certain about images that resemble none of the data sets.
MEMBERSHIP_PENALTY = 0.3
MAX_ITERATIONS = 1000


class Platt(NamedTuple):
    """probability = sigmoid(slope * logit + intercept) (Platt, Probabilistic Outputs for SVMs, 1999)."""

    slope: float
    intercept: float

    def probabilities(self, logits: Values) -> Values:
        """Return the probability for each logit, (n,)."""
        return np.asarray(expit(self.slope * logits.astype(np.float64) + self.intercept))


@dataclass(frozen=True)
class Calibration:
    """Turns logits into probabilities."""

    curves: tuple[Platt, ...]  # one for each data set
    # With several curves, a head on the features for each: the softmax of their logits gives the weights of the curves.
    membership: tuple[LinearHead, ...] = ()

    def probabilities(self, logits: Values, features: Values) -> Values:
        """Return the probability of a crack in each image: logits (n,), features (n, n_features) -> (n,)."""
        by_curve = np.stack([curve.probabilities(logits) for curve in self.curves], axis=1)  # (n, n_curves)
        if not self.membership:
            return np.asarray(by_curve[:, 0])
        membership = np.stack([head.logits(features).astype(np.float64) for head in self.membership], axis=1)
        return np.asarray((softmax(membership) * by_curve).sum(axis=1))


def fit_platt(labels: Labels, logits: Values, weights: Values | None = None) -> Platt:
    """Return the Platt curve fitted to these images, (n,), of which some are cracked and some intact.

    The targets are not 0 and 1 but Platt's, which keep the curve finite when logits separate the labels perfectly.
    """
    n_crack, n_intact = int(labels.sum()), int((~labels).sum())
    target = np.where(labels, (n_crack + 1) / (n_crack + 2), 1 / (n_intact + 2))  # (n,)
    weights = np.ones(len(labels)) if weights is None else weights
    # A soft target t is passed as a crack of weight t and an intact image of weight 1 - t. The solver is Newton's
    # method, because the default one stops far too early when logits are small.
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8).fit(
        np.concatenate([logits, logits]).reshape(-1, 1).astype(np.float64),
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([target * weights, (1 - target) * weights]),
    )
    return Platt(float(model.coef_[0, 0]), float(model.intercept_[0]))


def fit_calibration(
    labels: Labels,
    logits: Values,
    features: Values,
    datasets: npt.NDArray[np.str_],
    weights: Values | None = None,
) -> Calibration:
    """Return the calibration fitted to validation images.

    A data set whose images all have the same label gets no curve. If no data set has both labels, one curve is fitted
    to all images. Labels, logits, names of data sets and weights have the shape (n,), features (n, n_features). The
    probabilities assume the share of cracks that the weighted images of a curve have.
    """
    with_both = [name for name in np.unique(datasets) if len(np.unique(labels[datasets == name])) == 2]
    parts = [datasets == name for name in with_both] or [np.ones(len(labels), bool)]
    weights = np.ones(len(labels)) if weights is None else weights
    curves = tuple(fit_platt(labels[part], logits[part], weights[part]) for part in parts)
    if len(curves) == 1:
        return Calibration(curves)
    has_curve = np.isin(datasets, with_both)
    return Calibration(curves, _fit_membership(features[has_curve], datasets[has_curve]))


def _fit_membership(features: Values, datasets: npt.NDArray[np.str_]) -> tuple[LinearHead, ...]:
    """Return a head for each data set, sorted by name; the softmax of their logits is the similarity to each."""
    scale = Scale.of(features)
    model = LogisticRegression(C=1 / (MEMBERSHIP_PENALTY * len(datasets)), max_iter=MAX_ITERATIONS)
    model.fit(scale.standardised(features), datasets)
    coefficients, intercepts = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(intercepts) == 1:  # for two classes, scikit-learn returns only the logit of the second
        coefficients, intercepts = np.vstack([0 * coefficients, coefficients]), np.array([0.0, intercepts[0]])
    # A softmax depends only on differences. With zeros as the first head, the starter's file compresses better.
    coefficients, intercepts = coefficients - coefficients[0], intercepts - intercepts[0]
    return tuple(
        LinearHead.from_standardised(kernel, float(intercept), scale)
        for kernel, intercept in zip(coefficients, intercepts, strict=True)
    )


def calibrated(classifier: keras.Model, calibration: Calibration) -> keras.Model:
    """Return the exported graph: {"probability": (batch,), "features": (batch, n_features)}, both float32."""
    features = classifier.output["features"]
    slopes, intercepts = (np.array(values, np.float32) for values in zip(*calibration.curves, strict=True))
    curves = keras.layers.Dense(len(slopes), activation="sigmoid", name="calibration")
    probability = curves(classifier.output["logit"])  # (batch, n_curves)
    curves.set_weights([slopes[None, :], intercepts])
    if calibration.membership:
        membership = keras.layers.Dense(len(calibration.membership), activation="softmax", name="likeness")
        shares = membership(features)  # (batch, n_curves)
        kernels = np.stack([head.kernel for head in calibration.membership], axis=1)
        membership.set_weights([kernels, np.array([head.bias for head in calibration.membership], np.float32)])
        probability = keras.layers.Dot(axes=1, name="mixture")([shares, probability])  # (batch, 1)
    outputs = {"probability": keras.layers.Reshape((), name="probability")(probability), "features": features}
    return keras.Model(classifier.input, outputs, name="crack_classifier")
