"""Rank the labels of a data set by how likely they are wrong, and measure the ranking on labels made wrong on purpose.

The probability of each image is that of a classifier which was trained on none of its group, photo or copies. The doubt
of a label is the probability of the other one: the self-confidence of confident learning (Northcutt, Jiang and Chuang,
2021), by which cleanlab ranks two labels in the same order.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from pipeline.data.group_split import links_between
from pipeline.data.images import PackedImages
from pipeline.data.near_duplicates import connected_groups
from pipeline.data.suspect_labels import doubts
from pipeline.errors import CracksError
from pipeline.files import name_by_hash
from pipeline.models.linear_head import Scale
from pipeline.models.metrics import Labels
from pipeline.params import Backbone
from pipeline.training.embedder import embed_in_shards
from pipeline.training.features import Features

# The same for every project, so that an audit does not depend on the candidates of params.yaml.
BACKBONE = Backbone(
    architecture="efficientnet-lite0",
    image_size_px=224,
    feature_layers=("block_11_expand", "block_14_expand", "head_conv"),
)
N_COMPONENTS = 256
N_FOLDS = 5
L2_PENALTY = 0.3  # per image; a weaker one learns wrong labels too
SEED = 0
PLANTED_SHARE = 0.03  # of the labels, for the check
FIRST_SHARES = (0.05, 0.1)  # of the ranking, in which the check looks for them

Components = npt.NDArray[np.float64]  # (n, n_components)
Probabilities = npt.NDArray[np.float64]  # (n,), of a crack
Groups = npt.NDArray[np.int64]  # (n,); images of one group are held out together


class PlantedCheck(NamedTuple):
    """How many labels that were made wrong at random an audit finds."""

    n_planted: int
    found: tuple[float, ...]  # share of them in the first shares of the ranking, as FIRST_SHARES
    share_contradicted: float  # of them
    n_contradicted: int  # labels, planted ones among them


def audit_labels(images: PackedImages, groups: Groups, checkpoints: Path, name: str) -> tuple[Probabilities, list[str]]:
    """Return the probability of a crack of each image, by which to judge its label, and sentences on its worth.

    The images are embedded first. `checkpoints` keeps finished parts of that until all is done; `name` is that of the
    data set on the progress bar. Raises CracksError if a label has images in less than five groups.
    """
    labels = (images.inventory["label"] == "crack").to_numpy()
    check_groups(labels, groups)
    unfinished = checkpoints / name_by_hash(BACKBONE.model_dump_json(), *images.inventory["sha256"])
    components = principal_components(embed_in_shards(BACKBONE, images, unfinished, name))
    probabilities = cross_fit(components, labels, groups)
    check = planted_check(components, labels, groups, PLANTED_SHARE, SEED)
    shutil.rmtree(unfinished, ignore_errors=True)
    return probabilities, sentences(contradicted(labels, probabilities), check)


def groups_held_out_together(inventory: pd.DataFrame, pairs: pd.DataFrame) -> Groups:
    """Return the group of each image of one data set: its photo, and the copies that `pairs` (first, second) has."""
    return connected_groups(len(inventory), links_between(inventory.assign(dataset=""), pairs))


def sentences(is_contradicted: Labels, check: PlantedCheck) -> list[str]:
    """Return what an audit found, and what that is worth, by the check."""
    shares = zip(check.found, FIRST_SHARES, strict=True)
    found = ", ".join(f"{share:.0%} are in the first {first:.0%} of the ranking" for share, first in shares)
    return [
        f"{is_contradicted.sum():,} of {len(is_contradicted):,} labels are contradicted with confidence: wrong labels, "
        "and hard images whose label is right.",
        f"Check: of {check.n_planted:,} labels that were made wrong at random for this, {found}, "
        f"{check.share_contradicted:.0%} are contradicted. Mistakes of people are harder to find, since they are made "
        "on hard images.",
    ]


def check_groups(labels: Labels, groups: Groups) -> None:
    """Raise CracksError if a label has images in less than five groups."""
    for name, n_groups in (("crack", len(np.unique(groups[labels]))), ("intact", len(np.unique(groups[~labels])))):
        if n_groups < N_FOLDS:
            raise CracksError(
                f"Labels cannot be audited: {n_groups} photos or groups of copies are labelled {name}, and "
                f"{N_FOLDS} are needed of each label. Audit the data set that the images belong to, or add images."
            )


def principal_components(features: Features) -> Components:
    """Return the principal components of standardised features, (n, n_features)."""
    with threadpool_limits(1, "blas"):  # as in a probe
        standard = Scale.of(features).standardised(features)
        n_components = min(N_COMPONENTS, *standard.shape)
        pca = PCA(n_components, svd_solver="randomized", iterated_power=1, random_state=SEED, copy=False)
        return np.asarray(pca.fit_transform(standard), np.float64)


def cross_fit(components: Components, labels: Labels, groups: Groups) -> Probabilities:
    """Return the probability of a crack of each image, by a classifier that was not trained on its group.

    Both labels count equally, however rare one is.
    """
    model = LogisticRegression(C=1 / (L2_PENALTY * len(labels)), max_iter=1000, class_weight="balanced")
    folds = StratifiedGroupKFold(N_FOLDS)
    with threadpool_limits(1, "blas"):
        fitted = cross_val_predict(model, components, labels, groups=groups, cv=folds, method="predict_proba")
    return np.asarray(fitted[:, 1])


def contradicted(labels: Labels, probabilities: Probabilities) -> Labels:
    """Return which labels the classifiers contradict with confidence, (n,), as in confident learning.

    That is where the other label is at least as probable as on average among the images that have it, and the given one
    is less probable than among those that have that.
    """
    mean_crack, mean_intact = probabilities[labels].mean(), 1 - probabilities[~labels].mean()
    is_like_crack, is_like_intact = probabilities >= mean_crack, 1 - probabilities >= mean_intact
    return np.asarray(np.where(labels, is_like_intact & ~is_like_crack, is_like_crack & ~is_like_intact))


def planted_check(components: Components, labels: Labels, groups: Groups, share: float, seed: int) -> PlantedCheck:
    """Return how an audit finds labels of which this share, 0..1, was made wrong at random."""
    n = len(labels)
    planted = np.random.default_rng(seed).choice(n, max(1, round(share * n)), replace=False)
    given = labels.copy()
    given[planted] ^= True
    probabilities = cross_fit(components, given, groups)
    rank = np.empty(n, np.int64)
    rank[np.argsort(-doubts(given, probabilities), kind="stable")] = np.arange(n)
    is_contradicted = contradicted(given, probabilities)
    found = tuple(float((rank[planted] < first * n).mean()) for first in FIRST_SHARES)
    return PlantedCheck(len(planted), found, float(is_contradicted[planted].mean()), int(is_contradicted.sum()))
