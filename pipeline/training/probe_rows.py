"""What the heads of a probe learn from: features of training images, of these turned, and of mosaics of them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.data.images import Chosen, LabelledImages
from pipeline.errors import CracksError
from pipeline.models.metrics import Labels
from pipeline.params import Backbone, MosaicSet, Probe
from pipeline.training.embedder import embed_in_shards
from pipeline.training.features import Features, features_of
from pipeline.training.hairline_cracks import Folds
from pipeline.training.mosaics import build_mosaics
from pipeline.training.orientations import N_OTHERS, OtherOrientations
from pipeline.training.probe import TrainingRows

N_FOLDS = 3  # each fit costs as much as the last one: three tell penalties that are tenfold apart well enough

Positions = npt.NDArray[np.int64]  # (n,), of images among those of the train side


def rows_by_head(
    backbone: Backbone, params: Probe, train: LabelledImages, features: Path, unfinished: Path
) -> dict[str, TrainingRows]:
    """Return what each head of a probe learns from, by name.

    There is a head for each data set (but for small ones): it learns from the training images and, where params ask for
    them, their other orientations, and mosaics of them. Another one learns from mosaics with traced cracks instead.
    """
    datasets, groups = (train.rows[column].to_numpy(str) for column in ("dataset", "group"))
    known = features_of(train.rows, features)
    heads: dict[str, TrainingRows] = {}
    for name, chosen in images_by_head(datasets, train.labels, groups).items():
        heads |= _rows_of_data_set(name, backbone, params, train, chosen, known[chosen], unfinished / name)
    return heads


def _rows_of_data_set(
    name: str,
    backbone: Backbone,
    params: Probe,
    train: LabelledImages,
    chosen: Positions,
    known: Features,
    unfinished: Path,
) -> dict[str, TrainingRows]:
    labels, datasets = train.labels[chosen], train.rows["dataset"].to_numpy(str)[chosen]
    folds = assign_folds(labels, train.rows["group"].to_numpy(str)[chosen])
    images = [TrainingRows(known, labels, folds, datasets)]

    turned = np.flatnonzero(np.isin(datasets, params.orientations))
    if len(turned):
        others = OtherOrientations(Chosen(train, chosen[turned]))
        seen = embed_in_shards(backbone, others, unfinished / "turned", "turned images", for_training=True)
        again = np.tile(turned, N_OTHERS)
        images.append(TrainingRows(seen, labels[again], folds[again], datasets[again]))

    def composed(wanted: MosaicSet | None, kind: str) -> list[TrainingRows]:
        shrunken = np.flatnonzero(np.isin(datasets, wanted.of if wanted else ()))
        if wanted is None or not len(shrunken):
            return []
        size_px, draw_hairlines = backbone.image_size_px, kind == "hairline_mosaics"
        mosaics = build_mosaics(
            train, chosen[shrunken], folds[shrunken], wanted, size_px, params.seed, draw_hairlines=draw_hairlines
        )
        seen = embed_in_shards(backbone, mosaics, unfinished / kind, "mosaics", for_training=True)
        return [TrainingRows(seen, mosaics.labels, mosaics.folds, np.full(len(seen), kind))]

    heads = {name: TrainingRows.concatenated([*images, *composed(params.mosaics, "mosaics")])}
    if traced := composed(params.hairline_mosaics, "hairline_mosaics"):
        heads[f"{name}, hairlines"] = TrainingRows.concatenated([*images, *traced])
    return heads


def images_by_head(
    datasets: npt.NDArray[np.str_], labels: Labels, groups: npt.NDArray[np.str_]
) -> dict[str, Positions]:
    """Return by data set the positions, (n,), of the images that its head learns from.

    A data set with too few groups for a head of its own is learned from with the largest one that has enough. Where
    none has, all are learned from together.
    """
    names, sizes = np.unique(datasets, return_counts=True)
    has_head = np.array([_has_enough_groups(labels[datasets == name], groups[datasets == name]) for name in names])
    home = names[np.argmax(np.where(has_head, sizes, 0) if has_head.any() else sizes)]
    learned_with = np.where(np.isin(datasets, names[has_head]), datasets, home)
    return {str(name): np.flatnonzero(learned_with == name) for name in np.unique(learned_with)}


def _has_enough_groups(labels: Labels, groups: npt.NDArray[np.str_]) -> bool:
    return min(_n_groups(labels, groups).values()) >= N_FOLDS


def _n_groups(labels: Labels, groups: npt.NDArray[np.str_]) -> dict[str, int]:
    return {name: len(np.unique(groups[chosen])) for name, chosen in (("crack", labels), ("intact", ~labels))}


def assign_folds(labels: Labels, groups: npt.NDArray[np.str_]) -> Folds:
    """Return a fold for each image, groups kept together, both labels spread over the folds; (n,).

    Raises:
        CracksError: too few groups of a label.
    """
    for name, n_groups in _n_groups(labels, groups).items():
        if n_groups < N_FOLDS:
            raise CracksError(
                f"The train side has {n_groups} groups of {name}, a probe needs {N_FOLDS} for its cross-validation. "
                "Add images, or use a candidate of kind finetune."
            )
    folds = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(N_FOLDS)
    for fold, (_, held_out) in enumerate(splitter.split(np.empty(len(labels)), labels, groups)):
        folds[held_out] = fold
    return folds
