"""The training rows of a probe: features of training images, of their other orientations, and of mosaics of them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.data.images import ImageSubset, LabelledImages
from pipeline.errors import CracksError
from pipeline.models.metrics import Labels
from pipeline.params import Backbone, MosaicSet, Probe
from pipeline.training.augmentation import N_OTHERS, OtherOrientations
from pipeline.training.embedder import embed_in_shards
from pipeline.training.features import Features, features_of
from pipeline.training.hairline_cracks import Folds
from pipeline.training.mosaics import build_mosaics
from pipeline.training.probe import TrainingRows

N_FOLDS = 3  # each fold costs as much as the final fit; three suffice to compare penalties that differ tenfold

Positions = npt.NDArray[np.int64]  # (n,), positions among the images of the train side


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
        heads |= _rows_of_data_set(name, backbone, params, train, chosen, train_features[chosen], unfinished / name)
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
    """Return a fold for each image, (n,); groups stay together. Raises `CracksError` if a label has too few of them."""
    for name, n_groups in _n_groups(labels, groups).items():
        if n_groups < N_FOLDS:
            raise CracksError(
                f"The train side has {n_groups} groups of {name}, but a probe needs {N_FOLDS} for its cross-validation."
                " Add images, or use a candidate of kind finetune."
            )
    folds = np.empty(len(labels), np.int64)
    for fold, (_, held_out) in enumerate(StratifiedGroupKFold(N_FOLDS).split(labels, labels, groups)):
        folds[held_out] = fold
    return folds
