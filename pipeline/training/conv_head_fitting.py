"""Training a convolutional head on cached activations of a frozen backbone."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import LabelledImages
from pipeline.models.conv_head import activations_of, build_conv_head, conv_head_classifier, stored_weights
from pipeline.models.tf import keras
from pipeline.params import Backbone, ConvHead
from pipeline.training.activation_cache import cache_activations
from pipeline.training.checkpoints import TrainingHistory, digest_of
from pipeline.training.features import Features
from pipeline.training.fitting import Batches, PhaseData, fit_phase
from pipeline.training.probe import equal_weights


def fit_conv_head(
    backbone: Backbone,
    train: LabelledImages,
    validation: LabelledImages,
    params: ConvHead,
    unfinished: Path,
    history: TrainingHistory,
) -> tuple[keras.Model, npt.NDArray[np.float32], Features]:
    """Train a convolutional head; return the uncalibrated classifier, and its logits (n,) and features on validation.

    All data sets count equally, and so do both labels within a data set. The loss is the mean of those of the
    branches, so that each learns what it can by itself. A killed run is resumed from the folder of `history`.
    Activations are cached in `unfinished`, once for all images that these are a part of.
    """
    keras.utils.set_random_seed(params.seed)
    activations = activations_of(backbone, params)
    head = build_conv_head(activations, params)
    n_branches = head.output.shape[1]
    lower = keras.Model(activations.network.input, {"features": activations.network.output})
    cached, held_out = (
        cache_activations(lower, images.whole, unfinished / digest_of(images.whole.rows)).part(images.positions)
        for images in (train, validation)
    )
    weights, held_out_weights = (
        equal_weights(images.labels, images.rows["dataset"].to_numpy(str)) for images in (train, validation)
    )
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
    features = np.stack([held_out.pixels(position)[-activations.n_features :] for position in range(len(validation))])
    return conv_head_classifier(activations, head), logits, features
