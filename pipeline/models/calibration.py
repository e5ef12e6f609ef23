"""Calibration: turning a logit into the probability of a crack, with one Platt curve for each data set.

The curves are weighted by how similar the image is to each data set (docs/decisions/0004-a-curve-for-each-data-set.md).
For a head that was trained on several data sets together there is one curve more, fitted to all images, which is used
for images that are similar to none of the data sets (docs/decisions/0026-a-calibration-curve-for-other-images.md).
"""

from collections.abc import Sequence
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
# heads would also be certain about images that are similar to none of the data sets.
MEMBERSHIP_PENALTY = 0.3
PENALTY_WITH_COMMON_CURVE = 0.03  # where they are also fitted to images that are similar to none
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

    curves: tuple[Platt, ...]  # one for each data set; if `averages_logits`, the first is the one of all images
    # With several curves, a head on the features for each: the softmax of their logits gives the weights of the curves.
    membership: tuple[LinearHead, ...] = ()
    # Whether the weights average the calibrated logits, slope * logit + intercept, and not the probabilities.
    averages_logits: bool = False

    def probabilities(self, logits: Values, features: Values) -> Values:
        """Return the probability of a crack in each image: logits (n,), features (n, n_features) -> (n,)."""
        shares = _shares(self.membership, features) if self.membership else np.ones((len(logits), 1))  # (n, n_curves)
        if self.averages_logits:
            slopes, intercepts = (shares @ np.array(self.curves, np.float64)).T
            return np.asarray(expit(slopes * logits.astype(np.float64) + intercepts))
        by_curve = np.stack([curve.probabilities(logits) for curve in self.curves], axis=1)  # (n, n_curves)
        return np.asarray((shares * by_curve).sum(axis=1))


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
        np.concatenate([logits, logits]).astype(np.float64)[:, None],
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([target * weights, (1 - target) * weights]),
    )
    return Platt(float(model.coef_[0, 0]), float(model.intercept_[0]))


def fit_calibration(
    labels: Labels, logits: Values, features: Values, datasets: npt.NDArray[np.str_], weights: Values | None = None
) -> Calibration:
    """Return the calibration fitted to validation images.

    A data set whose images all have the same label gets no curve. If no data set has both labels, one curve is fitted
    to all images. Labels, logits, names of data sets and weights have the shape (n,), features (n, n_features). The
    probabilities assume the share of cracks that the weighted images of a curve have.
    """
    curves = _curves_by_dataset(labels, logits, datasets, weights)
    if not curves:
        return Calibration((fit_platt(labels, logits, weights),))
    if len(curves) == 1:
        return Calibration(tuple(curves.values()))
    has_curve = np.isin(datasets, list(curves))
    membership = _fit_membership(features[has_curve], datasets[has_curve], MEMBERSHIP_PENALTY)
    return Calibration(tuple(curves.values()), membership)


def fit_calibration_with_common_curve(
    labels: Labels,
    logits: Values,
    datasets: npt.NDArray[np.str_],
    membership: tuple[Values, npt.NDArray[np.str_]],
    weights: Values | None = None,
) -> Calibration:
    """Return the calibration of a head that was trained on several data sets together, fitted to validation images.

    Labels, logits, names of data sets and weights have the shape (n,). The first curve is fitted to all images, and is
    used for images that are similar to no data set. `membership` has the features, (m, n_features), and the data set of
    each image, (m,), from which similarity is learned; for images that are similar to none it is "".
    """
    features, names = membership
    part = np.isin(datasets, names)
    curves = _curves_by_dataset(labels[part], logits[part], datasets[part], None if weights is None else weights[part])
    common = fit_platt(labels, logits, weights)
    if len(curves) < 2:
        return Calibration((common,))
    has_curve = np.isin(names, ["", *curves])
    heads = _fit_membership(features[has_curve], names[has_curve], PENALTY_WITH_COMMON_CURVE)
    return Calibration((common, *curves.values()), heads, averages_logits=True)


def _curves_by_dataset(
    labels: Labels, logits: Values, datasets: npt.NDArray[np.str_], weights: Values | None
) -> dict[str, Platt]:
    """Return the curve of each data set that has both labels, by name, sorted."""
    weights = np.ones(len(labels)) if weights is None else weights
    parts = {str(name): datasets == name for name in np.unique(datasets)}
    return {
        name: fit_platt(labels[part], logits[part], weights[part])
        for name, part in parts.items()
        if len(np.unique(labels[part])) == 2
    }


def _shares(membership: Sequence[LinearHead], features: Values) -> Values:
    """Return the weights of the curves for each image, (n, n_curves)."""
    return np.asarray(softmax(np.stack([head.logits(features).astype(np.float64) for head in membership], axis=1)))


def _fit_membership(features: Values, datasets: npt.NDArray[np.str_], penalty: float) -> tuple[LinearHead, ...]:
    """Return a head for each data set, sorted by name; the softmax of their logits is the similarity to each."""
    scale = Scale.of(features)
    model = LogisticRegression(C=1 / (penalty * len(datasets)), max_iter=MAX_ITERATIONS)
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
    features, layers = classifier.output["features"], keras.layers
    slopes, intercepts = (np.array(values, np.float32) for values in zip(*calibration.curves, strict=True))
    curves = layers.Dense(len(slopes), "linear" if calibration.averages_logits else "sigmoid", name="calibration")
    mixed = curves(classifier.output["logit"])  # (batch, n_curves)
    curves.set_weights([slopes[None, :], intercepts])
    if calibration.membership:
        membership = layers.Dense(len(calibration.membership), activation="softmax", name="likeness")
        shares = membership(features)  # (batch, n_curves)
        kernels = np.stack([head.kernel for head in calibration.membership], axis=1)
        membership.set_weights([kernels, np.array([head.bias for head in calibration.membership], np.float32)])
        mixed = layers.Dot(axes=1, name="mixture")([shares, mixed])  # (batch, 1)
    if calibration.averages_logits:
        mixed = layers.Activation("sigmoid", name="curve")(mixed)
    outputs = {"probability": layers.Reshape((), name="probability")(mixed), "features": features}
    return keras.Model(classifier.input, outputs, name="crack_classifier")
