"""Training a convolutional head on cached activations of a frozen backbone."""

import math

import numpy as np

from pipeline.data.images import LabelledImages
from pipeline.models.conv_head import N_BRANCHES, activations_of, build_conv_head, conv_head_classifier, stored_weights
from pipeline.models.network import image_input, preprocessed
from pipeline.models.tf import keras
from pipeline.params import Backbone, ConvHead
from pipeline.training.activation_cache import cache_activations
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.fitting import Batches, PhaseData, fit_phase
from pipeline.training.probe import equal_weights


def fit_conv_head(
    backbone: Backbone, train: LabelledImages, validation: LabelledImages, params: ConvHead, history: TrainingHistory
) -> keras.Model:
    """Train a convolutional head and return the uncalibrated classifier.

    All data sets count equally, and so do both labels within a data set. The loss is the mean of those of both
    branches, so that each learns what it can by itself. A killed run is resumed from the folder of `history`.
    """
    keras.utils.set_random_seed(params.seed)
    activations = activations_of(backbone, params.map_layers)
    head = build_conv_head(activations, params)
    image = image_input()
    lower = keras.Model(image, {"features": activations.network(preprocessed(image, backbone.image_size_px))})
    folder = history.path.parent
    cached, held_out = (
        cache_activations(lower, images, folder / name)
        for images, name in ((train, "activations-train"), (validation, "activations-validation"))
    )
    weights, held_out_weights = (
        equal_weights(images.labels, images.rows["dataset"].to_numpy(str)) for images in (train, validation)
    )
    data = PhaseData(
        head,
        Batches(cached, train.labels, params, lambda epoch: np.zeros(len(train), np.int64), weights, N_BRANCHES),
        Batches(held_out, validation.labels, params, None, held_out_weights, N_BRANCHES),
    )
    n_steps = params.n_epochs * math.ceil(len(train) / params.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(params.learning_rate, n_steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=params.weight_decay)
    fit_phase(data, "head", optimizer, params.n_epochs, None, params, history, params.label_smoothing)
    head.set_weights(stored_weights(head))  # so that what is calibrated and measured is what a file has
    return conv_head_classifier(backbone, activations, head)
