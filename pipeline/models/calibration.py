"""Calibration: turning a logit into the probability of a crack, with one Platt curve for each data set.

The curves are weighted by how similar the image is to each data set (docs/decisions/0004-a-curve-for-each-data-set.md).
Data sets that one head has learned from share a slope (docs/decisions/0025-the-tracer-as-a-branch.md).
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

    @property
    def has_one_slope(self) -> bool:
        """Return whether the curves differ in their intercepts alone; then these are averaged, not the probabilities.

        So of two images with the same weights of the curves, the one with the larger logit is always likelier cracked.
        """
        return len({curve.slope for curve in self.curves}) == 1

    def probabilities(self, logits: Values, features: Values) -> Values:
        """Return the probability of a crack in each image: logits (n,), features (n, n_features) -> (n,)."""
        shares = _shares(self.membership, features) if self.membership else np.ones((len(logits), 1))  # (n, n_curves)
        if self.has_one_slope:
            intercepts = shares @ [curve.intercept for curve in self.curves]
            return np.asarray(expit(self.curves[0].slope * logits.astype(np.float64) + intercepts))
        by_curve = np.stack([curve.probabilities(logits) for curve in self.curves], axis=1)  # (n, n_curves)
        return np.asarray((shares * by_curve).sum(axis=1))


def fit_platt(labels: Labels, logits: Values, weights: Values | None = None) -> Platt:
    """Return the Platt curve fitted to these images, (n,), of which some are cracked and some intact."""
    (curve,) = fit_curves(labels, logits, np.full(len(labels), ""), weights)
    return curve


def fit_curves(
    labels: Labels, logits: Values, datasets: npt.NDArray[np.str_], weights: Values | None = None
) -> tuple[Platt, ...]:
    """Return a Platt curve for each data set, sorted by name; they have one slope, and are fitted to all images, (n,).

    The targets are not 0 and 1 but Platt's, which keep the curves finite when logits separate the labels perfectly.
    """
    n_crack, n_intact = int(labels.sum()), int((~labels).sum())
    target = np.where(labels, (n_crack + 1) / (n_crack + 2), 1 / (n_intact + 2))  # (n,)
    weights = np.ones(len(labels)) if weights is None else weights
    is_of = datasets[:, None] == np.unique(datasets)  # (n, n_datasets); the coefficients of these are the intercepts
    values = np.column_stack([logits.astype(np.float64), is_of])
    # A soft target t is passed as a crack of weight t and an intact image of weight 1 - t. The solver is Newton's
    # method, because the default one stops far too early when logits are small.
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, fit_intercept=False).fit(
        np.concatenate([values, values]),
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([target * weights, (1 - target) * weights]),
    )
    slope, *intercepts = model.coef_[0].tolist()
    return tuple(Platt(slope, intercept) for intercept in intercepts)


def fit_calibration(
    labels: Labels,
    logits: Values,
    features: Values,
    datasets: npt.NDArray[np.str_],
    weights: Values | None = None,
    one_slope: Sequence[str] = (),
) -> Calibration:
    """Return the calibration fitted to validation images.

    A data set whose images all have the same label gets no curve. If no data set has both labels, one curve is fitted
    to all images. Labels, logits, names of data sets and weights have the shape (n,), features (n, n_features). The
    curves of the data sets in `one_slope` differ in their intercepts alone. The probabilities assume the share of
    cracks that the weighted images of a curve have.
    """
    with_both = [name for name in np.unique(datasets) if len(np.unique(labels[datasets == name])) == 2]
    weights = np.ones(len(labels)) if weights is None else weights
    if not with_both:
        return Calibration((fit_platt(labels, logits, weights),))
    together = [name for name in with_both if name in one_slope]
    curves: dict[str, Platt] = {}
    for names in ([together] if together else []) + [[name] for name in with_both if name not in one_slope]:
        part = np.isin(datasets, names)
        curves |= zip(names, fit_curves(labels[part], logits[part], datasets[part], weights[part]), strict=True)
    if len(curves) == 1:
        return Calibration(tuple(curves.values()))
    has_curve = np.isin(datasets, with_both)
    membership = _fit_membership(features[has_curve], datasets[has_curve])
    return Calibration(tuple(curves[name] for name in with_both), membership)


def _shares(membership: Sequence[LinearHead], features: Values) -> Values:
    """Return the weights of the curves for each image, (n, n_curves)."""
    return np.asarray(softmax(np.stack([head.logits(features).astype(np.float64) for head in membership], axis=1)))


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
    features, layers = classifier.output["features"], keras.layers
    slopes, intercepts = (np.array(values, np.float32) for values in zip(*calibration.curves, strict=True))
    mixes_logits = calibration.has_one_slope and len(slopes) > 1
    curves = layers.Dense(len(slopes), activation="linear" if mixes_logits else "sigmoid", name="calibration")
    mixed = curves(classifier.output["logit"])  # (batch, n_curves)
    curves.set_weights([slopes[None, :], intercepts])
    if calibration.membership:
        membership = layers.Dense(len(calibration.membership), activation="softmax", name="likeness")
        shares = membership(features)  # (batch, n_curves)
        kernels = np.stack([head.kernel for head in calibration.membership], axis=1)
        membership.set_weights([kernels, np.array([head.bias for head in calibration.membership], np.float32)])
        mixed = layers.Dot(axes=1, name="mixture")([shares, mixed])  # (batch, 1)
    if mixes_logits:
        mixed = layers.Activation("sigmoid", name="curve")(mixed)
    outputs = {"probability": layers.Reshape((), name="probability")(mixed), "features": features}
    return keras.Model(classifier.input, outputs, name="crack_classifier")
