"""Training a convolutional head on cached activations of a frozen backbone."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.images import LabelledImages
from pipeline.models.conv_head import (
    Activations,
    activations_of,
    build_conv_head,
    conv_head_classifier,
    stored_weights,
)
from pipeline.models.tf import keras
from pipeline.params import Backbone, ConvHead
from pipeline.training.activation_cache import ActivationCache, cache_activations
from pipeline.training.augmentation import AugmentedViews, strongly_augmented
from pipeline.training.checkpoints import TrainingHistory, digest_of
from pipeline.training.features import Features
from pipeline.training.fitting import Batches, PhaseData, fit_phase
from pipeline.training.probe import equal_weights

MAX_MEMBERSHIP_IMAGES = 2000  # training images of a data set, from which similarity to it is learned


class FittedConvHead(NamedTuple):
    """A trained convolutional head, and what its calibration is fitted to."""

    classifier: keras.Model  # uncalibrated
    logits: npt.NDArray[np.float32]  # of the validation images, (n,)
    features: Features  # of the validation images, (n, n_features)
    # Features, (m, n_features), and data set, (m,), of the images from which similarity to each data set is learned:
    # some training images, and strongly augmented validation images as examples of others, with "" as their data set.
    membership: tuple[Features, npt.NDArray[np.str_]]


def fit_conv_head(
    backbone: Backbone,
    train: LabelledImages,
    validation: LabelledImages,
    params: ConvHead,
    unfinished: Path,
    history: TrainingHistory,
) -> FittedConvHead:
    """Train a convolutional head.

    All data sets count equally, and so do both labels within a data set. The loss is the mean of those of the
    branches, so that each learns what it can by itself. A killed run is resumed from the folder of `history`.
    Activations are cached in `unfinished`, once for all images that these are a part of.
    """
    keras.utils.set_random_seed(params.seed)
    activations = activations_of(backbone, params)
    head = build_conv_head(activations, params)
    n_branches = head.output.shape[1]
    lower = keras.Model(activations.network.input, {"features": activations.network.output})
    (cached,) = _cached_views(lower, train, 1, params.seed, unfinished)
    held_out, others = _cached_views(lower, validation, 2, params.seed, unfinished)
    names, held_out_names = (images.rows["dataset"].to_numpy(str) for images in (train, validation))
    weights, held_out_weights = equal_weights(train.labels, names), equal_weights(validation.labels, held_out_names)
    data = PhaseData(
        head,
        Batches(cached, train.labels, params, lambda epoch: np.zeros(len(train), np.int64), weights, n_branches),
        Batches(held_out, validation.labels, params, None, held_out_weights, n_branches),
    )
    n_steps = params.n_epochs * math.ceil(len(train) / params.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(params.learning_rate, n_steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=params.weight_decay)
    fit_phase(data, "head", optimizer, params.n_epochs, None, params, history, params.label_smoothing)
    head.set_weights(stored_weights(head))  # so that what is calibrated and measured is what a file has
    logits = head.predict(data.validation.dataset(head.input_shape), verbose=0).mean(axis=1)
    some = _sample_by_dataset(names, params.seed)
    membership = [_features(cached.part(some), activations), _features(others, activations)]
    return FittedConvHead(
        conv_head_classifier(activations, head),
        logits,
        _features(held_out, activations),
        (np.concatenate(membership), np.append(names[some], np.full(len(validation), ""))),
    )


def _cached_views(
    lower: keras.Model, images: LabelledImages, n_views: int, seed: int, folder: Path
) -> list[ActivationCache]:
    """Return the activations of all images, then those of `n_views` - 1 augmented versions of all of them."""
    whole = images.whole
    views = AugmentedViews(whole, n_views, strongly_augmented, seed)
    cache = cache_activations(lower, views, folder / f"{digest_of(whole.rows)}-{n_views}")
    return [cache.part(view * len(whole) + images.positions) for view in range(n_views)]


def _features(cache: ActivationCache, activations: Activations) -> Features:
    """Return the features, (n, n_features), at the end of cached activations."""
    return np.stack([cache.pixels(position)[-activations.n_features :] for position in range(len(cache.sizes))])


def _sample_by_dataset(names: npt.NDArray[np.str_], seed: int) -> npt.NDArray[np.int64]:
    """Return the positions of at most `MAX_MEMBERSHIP_IMAGES` of each data set, (m,), chosen at random."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.permutation(np.flatnonzero(names == name))[:MAX_MEMBERSHIP_IMAGES] for name in np.unique(names)]
    )
