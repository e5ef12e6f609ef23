"""A probe: logistic regression on the features of a frozen backbone; grouped cross-validation chooses the L2 penalty.

Each data set has its own head, and the logits of all heads are averaged. A single head for all data sets is worse on
each of them and on concrete that resembles none of them (docs/experiments.md).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from pipeline.data.images import ImageSubset, LabelledImages
from pipeline.errors import TooFewImagesError
from pipeline.models.linear_head import LinearHead, Scale
from pipeline.models.metrics import Labels
from pipeline.params import Backbone, MosaicSet, Probe
from pipeline.training.augmentation import N_OTHERS, OtherOrientations
from pipeline.training.checkpoints import TrainingHistory, digest_of
from pipeline.training.embedder import embed_in_shards
from pipeline.training.features import Features, features_of
from pipeline.training.hairline_cracks import Folds
from pipeline.training.mosaics import build_mosaics

# On more threads, linear algebra takes four times the CPU seconds, most of them waiting, and rounding depends on the
# number of cores.
N_THREADS = 1
N_FOLDS = 3  # each fold costs as much as the final fit; three suffice to compare penalties that differ tenfold
MAX_ITERATIONS = 1000
MIN_GINI = 0.01  # so that the logit is not constant if no head is better than guessing

Weights = npt.NDArray[np.float64]  # (n,)
Positions = npt.NDArray[np.int64]  # (n,), positions among the images of the train side


class TrainingRows(NamedTuple):
    """The training data of a head, one row per image."""

    features: Features
    labels: Labels
    folds: Folds  # images of one group are in the same fold
    sources: npt.NDArray[np.str_]  # (n,), name of the data set, or the kind of mosaics

    @classmethod
    def concatenated(cls, parts: "Sequence[TrainingRows]") -> "TrainingRows":
        """Return the rows of all parts."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))


def rows_by_head(
    backbone: Backbone, params: Probe, train: LabelledImages, features: Path, unfinished: Path
) -> dict[str, TrainingRows]:
    """Return the training rows of each head of a probe, by name: one for each data set that is large enough.

    They are its images and, if `params` asks for them, their other orientations and mosaics of them. A second head is
    trained on hairline mosaics instead of mosaics.
    """
    datasets, groups = (train.rows[column].to_numpy(str) for column in ("dataset", "group"))
    train_features = features_of(train.rows, features)
    heads: dict[str, TrainingRows] = {}
    for name, chosen in images_by_head(datasets, train.labels, groups).items():
        folder = unfinished / f"{name}-{digest_of(train.rows.iloc[chosen])}"
        heads |= _rows_of_data_set(name, backbone, params, train, chosen, train_features[chosen], folder)
    return heads


def _rows_of_data_set(
    name: str,
    backbone: Backbone,
    params: Probe,
    train: LabelledImages,
    chosen: Positions,
    features: Features,
    unfinished: Path,
) -> dict[str, TrainingRows]:
    labels, datasets = train.labels[chosen], train.rows["dataset"].to_numpy(str)[chosen]
    folds = assign_folds(labels, train.rows["group"].to_numpy(str)[chosen])
    images = [TrainingRows(features, labels, folds, datasets)]

    turned = np.flatnonzero(np.isin(datasets, params.orientations))
    if len(turned):
        others = OtherOrientations(ImageSubset(train, chosen[turned]))
        embedded = embed_in_shards(backbone, others, unfinished / "turned", "turned images", for_training=True)
        repeated = np.tile(turned, N_OTHERS)
        images.append(TrainingRows(embedded, labels[repeated], folds[repeated], datasets[repeated]))

    def mosaic_rows(wanted: MosaicSet | None, kind: str) -> list[TrainingRows]:
        shrunken = np.flatnonzero(np.isin(datasets, wanted.of if wanted else ()))
        if wanted is None or not len(shrunken):
            return []
        size_px, draw_hairlines = backbone.image_size_px, kind == "hairline_mosaics"
        mosaics = build_mosaics(
            train, chosen[shrunken], folds[shrunken], wanted, size_px, params.seed, draw_hairlines=draw_hairlines
        )
        embedded = embed_in_shards(backbone, mosaics, unfinished / kind, "mosaics", for_training=True)
        return [TrainingRows(embedded, mosaics.labels, mosaics.folds, np.full(len(embedded), kind))]

    heads = {name: TrainingRows.concatenated([*images, *mosaic_rows(params.mosaics, "mosaics")])}
    if hairlines := mosaic_rows(params.hairline_mosaics, "hairline_mosaics"):
        heads[f"{name}, hairlines"] = TrainingRows.concatenated([*images, *hairlines])
    return heads


def images_by_head(
    datasets: npt.NDArray[np.str_], labels: Labels, groups: npt.NDArray[np.str_]
) -> dict[str, Positions]:
    """Return the positions, (n,), of the training images of each head, by the name of its data set.

    A data set with too few groups for a head is merged with the largest one that has enough, or all if none has.
    """
    names, sizes = np.unique(datasets, return_counts=True)
    has_head = np.array(
        [min(_n_groups(labels[datasets == name], groups[datasets == name]).values()) >= N_FOLDS for name in names]
    )
    target = names[np.argmax(np.where(has_head, sizes, 0) if has_head.any() else sizes)]
    head_names = np.where(np.isin(datasets, names[has_head]), datasets, target)
    return {str(name): np.flatnonzero(head_names == name) for name in np.unique(head_names)}


def _n_groups(labels: Labels, groups: npt.NDArray[np.str_]) -> dict[str, int]:
    return {name: len(np.unique(groups[chosen])) for name, chosen in (("crack", labels), ("intact", ~labels))}


def assign_folds(labels: Labels, groups: npt.NDArray[np.str_]) -> Folds:
    """Return a fold for each image, (n,); groups stay together.

    Raises `TooFewImagesError` if a label has too few groups.
    """
    for name, n_groups in _n_groups(labels, groups).items():
        if n_groups < N_FOLDS:
            raise TooFewImagesError(
                f"The train side has {n_groups} groups of {name}, but a probe needs {N_FOLDS} for its cross-validation."
                " Add images, or use a candidate of kind finetune."
            )
    folds = np.empty(len(labels), np.int64)
    for fold, (_, held_out) in enumerate(StratifiedGroupKFold(N_FOLDS).split(labels, labels, groups)):
        folds[held_out] = fold
    return folds


def equal_weights(labels: Labels, sources: npt.NDArray[np.str_]) -> Weights:
    """Return a weight for each row, with mean 1; all sources count equally, and so do both labels within a source.

    Calibration on the validation side restores the true shares.
    """
    return np.asarray(compute_sample_weight("balanced", np.char.add(sources, np.where(labels, "+", "-"))))


class FittedHead(NamedTuple):
    """A head and its Gini coefficient on the held-out folds, 2 AUROC - 1: 0 for guessing, 1 for a perfect ranking."""

    head: LinearHead
    gini: float


def fit_probe(rows: Mapping[str, TrainingRows], params: Probe, history: TrainingHistory) -> LinearHead:
    """Fit a head to each entry of `rows` and return their weighted average.

    `history` gets a row for each head and L2 penalty, strongest penalty first; its phase is the name of the head.
    `loss` and `accuracy` are computed on the training rows, `val_loss` and `val_accuracy` on the held-out folds.
    """
    return average_heads({name: fit_head(rows[name], params, history, name) for name in sorted(rows)}, rows)


def average_heads(fitted: Mapping[str, FittedHead], rows: Mapping[str, TrainingRows]) -> LinearHead:
    """Return the head whose logit is the weighted mean of the logits of all heads.

    That weight is its Gini coefficient divided by the standard deviation of its logits on the rows of the other heads.
    """
    if len(fitted) == 1:
        return next(iter(fitted.values())).head
    ensemble_weights = []
    for name, (head, gini) in fitted.items():
        variances = []
        for other in sorted(rows.keys() - {name}):
            logits = head.logits(rows[other].features).astype(np.float64)
            weights = equal_weights(rows[other].labels, rows[other].sources)
            variances.append(np.average((logits - np.average(logits, weights=weights)) ** 2, weights=weights))
        spread = float(np.sqrt(np.mean(variances)))
        ensemble_weights.append(max(gini, MIN_GINI) / spread if spread > 0 else 0.0)  # a constant has no information
    total = sum(ensemble_weights) or 1.0
    heads = [(weight / total, head) for weight, (head, _) in zip(ensemble_weights, fitted.values(), strict=True)]
    kernel = sum(np.float32(share) * head.kernel for share, head in heads)
    return LinearHead(np.asarray(kernel), sum(share * head.bias for share, head in heads))


def fit_head(rows: TrainingRows, params: Probe, history: TrainingHistory, phase: str) -> FittedHead:
    """Return the head fitted to `rows`; `history` gets a row of `phase` for each L2 penalty.

    It is fitted to the principal components of standardised features, and then applies to raw features.
    """
    with threadpool_limits(N_THREADS, "blas"):
        scale = Scale.of(rows.features)
        standard = scale.standardised(rows.features)  # (n, n_features)
        n_components = min(params.n_components, *standard.shape)
        # A second iteration is no better on METU and takes 50 % longer. `standard` is overwritten.
        pca = PCA(n_components, svd_solver="randomized", iterated_power=1, random_state=params.seed, copy=False)
        reduced = pca.fit_transform(standard).astype(np.float64)  # (n, n_components)
        weights = equal_weights(rows.labels, rows.sources)
        fitted = []
        for step, l2_penalty in enumerate(sorted(params.l2_penalties, reverse=True)):
            model = _fit(reduced, rows.labels, weights, l2_penalty)
            held_out = _held_out(reduced, rows, weights, l2_penalty)
            values = {
                "l2_penalty": l2_penalty,
                **_scores("", rows.labels, model.predict_proba(reduced)[:, 1], weights),
                **_scores("val_", rows.labels, held_out, weights),
            }
            history.add(phase, step, values)
            gini = 2 * roc_auc_score(rows.labels, held_out, sample_weight=weights) - 1
            fitted.append((values["val_loss"], model, gini))
        _, best, gini = min(fitted, key=lambda triple: triple[0])
        coefficients = best.coef_[0] @ pca.components_  # (n_features,)
        head = LinearHead.from_standardised(coefficients, best.intercept_[0] - pca.mean_ @ coefficients, scale)
        return FittedHead(head, float(gini))


def _scores(prefix: str, labels: Labels, probabilities: Weights, weights: Weights) -> dict[str, float]:
    return {
        f"{prefix}loss": float(log_loss(labels, probabilities, sample_weight=weights)),
        f"{prefix}accuracy": float(np.average((probabilities >= 0.5) == labels, weights=weights)),
    }


def _fit(features: Weights, labels: Labels, weights: Weights, l2_penalty: float) -> LogisticRegression:
    # `l2_penalty` is per image, so that it does not depend on the number of images.
    model = LogisticRegression(C=1 / (l2_penalty * len(labels)), max_iter=MAX_ITERATIONS)
    return model.fit(features, labels, sample_weight=weights)


def _held_out(features: Weights, rows: TrainingRows, weights: Weights, l2_penalty: float) -> Weights:
    """Return the probability of each row by a model that was not trained on its fold, (n,)."""
    probabilities = np.empty(len(rows.labels))
    for fold in np.unique(rows.folds):
        held_out = rows.folds == fold
        model = _fit(features[~held_out], rows.labels[~held_out], weights[~held_out], l2_penalty)
        probabilities[held_out] = model.predict_proba(features[held_out])[:, 1]
    return probabilities
