"""Fine-tuning: training the head of a pre-trained network, then its upper blocks too, on augmented images."""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import LabelledImages
from pipeline.errors import CracksError
from pipeline.models.backbones import build_backbone
from pipeline.models.network import build_classifier, image_input, preprocessed
from pipeline.models.tf import keras
from pipeline.params import Backbone, Finetune, Phase
from pipeline.training.activation_cache import cache_activations, cache_features
from pipeline.training.augmentation import AugmentedViews, augmented
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.fitting import Batches, PhaseData, Views, fit_phase


def _always_frozen(network: keras.Model, first_layer: str) -> list[keras.Layer]:
    names = [layer.name for layer in network.layers]
    if first_layer not in names:
        raise CracksError(
            f"unfreeze_from is {first_layer!r}, but the backbone {network.name} has no such layer. "
            f"Its layers are {', '.join(name for name in names if name.endswith('_expand') or 'conv' in name)}."
        )
    # BatchNorm stays in inference mode only if frozen: `fit` overrides `training=False` in the call.
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return [*network.layers[: names.index(first_layer)], *norms]


def fit_finetune(
    backbone: Backbone, train: LabelledImages, validation: LabelledImages, params: Finetune, history: TrainingHistory
) -> keras.Model:
    """Fine-tune a pre-trained network and return the uncalibrated classifier.

    First only the head is trained, then the blocks from `unfreeze_from` on too. A killed run is resumed from the folder
    of `history`, with the result of an uninterrupted one (except for the order in which threads add up).
    """
    keras.utils.set_random_seed(params.seed)
    network = build_backbone(backbone.architecture, backbone.feature_layers)
    always_frozen = _always_frozen(network, params.unfreeze_from)  # checked before anything is trained
    head = [keras.layers.Dropout(params.dropout, seed=params.seed), keras.layers.Dense(1, name="head")]
    head_data, tuning_data = _data_of_phases(backbone, network, head, train, validation, params, history.path.parent)
    network.trainable = False
    _fit(head_data, "head", params.head, params, history)
    network.trainable = True
    for layer in always_frozen:
        layer.trainable = False
    _fit(tuning_data, "tuning", params.tuning, params, history)
    return build_classifier(network, backbone.image_size_px, head[1:])


def _fit(data: PhaseData, name: str, phase: Phase, params: Finetune, history: TrainingHistory) -> None:
    optimizer = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[phase.optimizer](
        phase.learning_rate
    )
    fit_phase(data, name, optimizer, phase.max_epochs, phase.patience_epochs, params, history)


def _data_of_phases(
    backbone: Backbone,
    network: keras.Model,
    head: list[keras.Layer],
    train: LabelledImages,
    validation: LabelledImages,
    params: Finetune,
    folder: Path,
) -> tuple[PhaseData, PhaseData]:
    """Return the data of both phases: images for the complete network, or cached activations for its upper layers."""
    n_cached = params.cached_augmentations
    n_views = n_cached or 1 + max(params.head.max_epochs, params.tuning.max_epochs)
    change = partial(augmented, augmentation=params.augmentation)
    views = AugmentedViews(train, n_views, change, params.seed)

    def views_of_epoch(epoch: int) -> npt.NDArray[np.int64]:
        if n_cached is None:  # augmented anew in each epoch
            return np.full(len(train), 1 + epoch)
        return np.random.default_rng([params.seed, epoch]).integers(n_cached, size=len(train))

    def data(model: keras.Model, views: Views, held_out: Views) -> PhaseData:
        batches = Batches(views, train.labels, params, views_of_epoch)
        return PhaseData(model, batches, Batches(held_out, validation.labels, params, None))

    if n_cached is None:
        classifier = build_classifier(network, backbone.image_size_px, head)
        complete = data(keras.Model(classifier.input, classifier.output["logit"]), views, validation)
        return complete, complete
    cut = network.get_layer(params.unfreeze_from).input
    image = image_input()
    values = preprocessed(image, backbone.image_size_px)
    lower = keras.Model(image, {"features": keras.Model(network.input, cut)(values)})
    upper = keras.Model(cut, network.output)
    cut_train = cache_activations(lower, views, folder / "cut-train")
    cut_validation = cache_activations(lower, validation, folder / "cut-validation")
    features_train = cache_features(upper, cut_train, folder / "features-train")
    features_validation = cache_features(upper, cut_validation, folder / "features-validation")
    return (
        data(keras.Sequential([keras.Input(features_train.shape), *head]), features_train, features_validation),
        data(keras.Sequential([keras.Input(cut_train.shape), upper, *head]), cut_train, cut_validation),
    )
