"""A probe: logistic regression on the features of a frozen backbone, its penalty chosen by grouped cross-validation."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from pipeline.errors import CracksError
from pipeline.inference import Features
from pipeline.linear import LinearHead, Scale
from pipeline.metrics import Labels
from pipeline.mosaics import Folds
from pipeline.params import Probe
from pipeline.recipes import History

# Linear algebra on more threads takes four times the CPU seconds, most of them waiting, and rounds otherwise on another
# number of cores.
N_THREADS = 1
N_FOLDS = 3  # each fit costs as much as the last one: three tell strengths that are tenfold apart well enough
MAX_ITERATIONS = 1000

Weights = npt.NDArray[np.float64]  # (n,)


@dataclass(frozen=True)
class Rows:
    """What a probe learns from.

    Attributes:
        features: (n, n_features).
        labels: (n,), True for crack.
        folds: (n,); images that belong together are in one fold.
        sources: (n,), where a row is from: a data set, or mosaics.
    """

    features: Features
    labels: Labels
    folds: Folds
    sources: npt.NDArray[np.str_]


def deal_folds(labels: Labels, groups: npt.NDArray[np.str_]) -> Folds:
    """Return a fold for each image, groups kept together, both labels spread over the folds; (n,).

    Raises:
        CracksError: too few groups of a label.
    """
    for name, chosen in (("crack", labels), ("intact", ~labels)):
        n_groups = len(np.unique(groups[chosen]))
        if n_groups < N_FOLDS:
            raise CracksError(
                f"The train side has {n_groups} groups of {name}, a probe needs {N_FOLDS} for its cross-validation. "
                "Add images, or use a candidate with recipe finetune."
            )
    folds = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(N_FOLDS)
    for fold, (_, held_out) in enumerate(splitter.split(np.empty(len(labels)), labels, groups)):
        folds[held_out] = fold
    return folds


def equal_weights(labels: Labels, sources: npt.NDArray[np.str_]) -> Weights:
    """Return a weight for each row, mean 1, by which every source counts the same, and in it both labels do.

    A data set of a few photos is not drowned by a large one, and a rare label not by a frequent one; the calibration on
    validation brings the true shares back.
    """
    _, cell = np.unique(np.char.add(sources, np.where(labels, "+", "-")), return_inverse=True)
    share = 1 / np.bincount(cell)[cell]
    return np.asarray(share / share.mean())


def fit_probe(rows: Rows, params: Probe, history: History) -> LinearHead:
    """Return the head that a probe has learned; `history` gets a row for each strength of the penalty, strongest first.

    Features are standardised and reduced to their principal components while it learns; both are folded into the
    kernel.
    `loss` and `accuracy` in the history are on the training rows, `val_loss` and `val_accuracy` on the folds held out.
    """
    with threadpool_limits(N_THREADS, "blas"):
        scale = Scale.of(rows.features)
        standard = scale.standardised(rows.features)  # (n, n_features)
        n_components = min(params.n_components, *standard.shape)
        pca = PCA(n_components, svd_solver="randomized", iterated_power=2, random_state=params.seed)
        reduced = pca.fit_transform(standard).astype(np.float64)  # (n, n_components)
        weights = equal_weights(rows.labels, rows.sources)
        fitted = []
        for step, strength in enumerate(sorted(params.strengths, reverse=True)):
            model = _fit(reduced, rows.labels, weights, strength)
            held_out = _held_out(reduced, rows, weights, strength)
            values = {
                "strength": strength,
                **_scores("", rows.labels, model.predict_proba(reduced)[:, 1], weights),
                **_scores("val_", rows.labels, held_out, weights),
            }
            history.add("head", step, values)
            fitted.append((values["val_loss"], model))
        _, best = min(fitted, key=lambda pair: pair[0])
        coefficients = best.coef_[0] @ pca.components_  # (n_features,)
        return LinearHead.on_plain_features(coefficients, best.intercept_[0] - pca.mean_ @ coefficients, scale)


def _scores(prefix: str, labels: Labels, probabilities: Weights, weights: Weights) -> dict[str, float]:
    return {
        f"{prefix}loss": float(log_loss(labels, probabilities, sample_weight=weights)),
        f"{prefix}accuracy": float(np.average((probabilities >= 0.5) == labels, weights=weights)),
    }


def _fit(features: Weights, labels: Labels, weights: Weights, strength: float) -> LogisticRegression:
    # `strength` is per image, so that it means the same for every number of images.
    model = LogisticRegression(C=1 / (strength * len(labels)), max_iter=MAX_ITERATIONS)
    return model.fit(features, labels, sample_weight=weights)


def _held_out(features: Weights, rows: Rows, weights: Weights, strength: float) -> Weights:
    """Return the probability of each row by a model that has not seen its fold, (n,)."""
    probabilities = np.empty(len(rows.labels))
    for fold in np.unique(rows.folds):
        held_out = rows.folds == fold
        model = _fit(features[~held_out], rows.labels[~held_out], weights[~held_out], strength)
        probabilities[held_out] = model.predict_proba(features[held_out])[:, 1]
    return probabilities
