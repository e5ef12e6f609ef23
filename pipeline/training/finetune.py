"""Fine-tuning: training the head of a pre-trained network, then its upper blocks too, on augmented images."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.data.images import LabelledImages, Sizes, batches_by_size
from pipeline.errors import CracksError
from pipeline.models.backbones import build_backbone
from pipeline.models.metrics import Labels
from pipeline.models.network import build_classifier, image_input, preprocessed
from pipeline.models.tf import keras
from pipeline.params import Augmentation, Backbone, Finetune, Phase
from pipeline.training.activation_cache import ActivationCache, Activations, cache_activations, cache_features
from pipeline.training.augmentation import AugmentedViews
from pipeline.training.checkpoints import TrainingHistory, n_epochs_done, save_best_and_last_weights, weights_file


class _Examples(Protocol):
    """Training or validation examples of a phase: images, or cached activations of images."""

    @property
    def labels(self) -> Labels: ...

    @property
    def sizes(self) -> Sizes: ...

    def pixels(self, position: int) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class _CachedExamples:
    """Cached activations of one view of each image."""

    cache: ActivationCache
    rows: npt.NDArray[np.int64]
    labels: Labels

    @property
    def sizes(self) -> Sizes:
        return np.ones((len(self.rows), 2), np.int64)  # all of one shape

    def pixels(self, position: int) -> Activations:
        return self.cache.row(int(self.rows[position]))


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of images of one size, shuffled if there is an rng, prepared while the network computes."""

    def __init__(self, examples: _Examples, batch_size: int, rng: np.random.Generator | None) -> None:
        super().__init__(workers=2, max_queue_size=8)
        self._examples = examples
        n = len(examples.labels)
        order = np.arange(n) if rng is None else rng.permutation(n)
        self._batches = [order[batch] for batch in batches_by_size(examples.sizes[order], batch_size)]
        if rng is not None:
            rng.shuffle(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        positions = self._batches[index]
        inputs = np.stack([self._examples.pixels(int(position)) for position in positions])
        return inputs, self._examples.labels[positions].astype(np.float32)[:, None]


def _augmentation_layers(augmentation: Augmentation, seed: int) -> list[keras.Layer]:
    return [
        keras.layers.RandomFlip(augmentation.flips, seed=seed),
        keras.layers.RandomRotation(augmentation.max_rotation_turns, fill_mode="reflect", seed=seed + 1),
    ]


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

    First only the head is trained, then the blocks from `unfreeze_from` on too. BatchNorm keeps its pre-trained values
    and stays in inference mode. A killed run is resumed from the folder of `history`. Each epoch draws its random
    numbers from the seed and its own number, so that its result does not depend on whether the run was resumed (except
    for the order in which threads add up).
    """
    keras.utils.set_random_seed(params.seed)
    network = build_backbone(backbone.architecture, backbone.feature_layers)
    always_frozen = _always_frozen(network, params.unfreeze_from)  # checked before anything is trained
    head = keras.layers.Dense(1, name="head")
    dropout = keras.layers.Dropout(params.dropout, seed=params.seed)
    if params.cached_augmentations is None:
        head_data, tuning_data = _data_from_images(backbone, network, [dropout, head], train, validation, params)
    else:
        head_data, tuning_data = _data_from_cache(
            backbone, network, [dropout, head], train, validation, params, history.path.parent
        )

    network.trainable = False
    _fit_phase(head_data, "head", params.head, params, history)
    network.trainable = True
    for layer in always_frozen:
        layer.trainable = False
    _fit_phase(tuning_data, "tuning", params.tuning, params, history)
    return build_classifier(network, backbone.image_size_px, [head])


@dataclass(frozen=True)
class _PhaseData:
    """The model and the examples of a phase.

    Attributes:
        model: from an example to the logit.
        train: function from an epoch to its training examples.
        validation: validation examples.
    """

    model: keras.Model
    train: Callable[[int], _Examples]
    validation: _Examples


def _data_from_images(
    backbone: Backbone,
    network: keras.Model,
    head: Sequence[keras.Layer],
    train: LabelledImages,
    validation: LabelledImages,
    params: Finetune,
) -> tuple[_PhaseData, _PhaseData]:
    """Return the data of both phases without a cache: the complete network, on images augmented anew in each epoch."""
    image = image_input()
    values = preprocessed(image, backbone.image_size_px)
    augmentation = _augmentation_layers(params.augmentation, params.seed)
    model = keras.Model(image, _through([*augmentation, network, *head], values))
    data = _PhaseData(model, lambda _: train, validation)
    return data, data


def _data_from_cache(
    backbone: Backbone,
    network: keras.Model,
    head: Sequence[keras.Layer],
    train: LabelledImages,
    validation: LabelledImages,
    params: Finetune,
    folder: Path,
) -> tuple[_PhaseData, _PhaseData]:
    """Return the data of both phases from the activation cache: frozen layers are computed once for each view."""
    assert params.cached_augmentations is not None  # noqa: S101 - for mypy: the caller has checked
    cut = network.get_layer(params.unfreeze_from).input
    image = image_input()
    values = preprocessed(image, backbone.image_size_px)
    lower = keras.Model(image, {"features": keras.Model(network.input, cut)(values)})
    upper = keras.Model(cut, network.output)
    views = AugmentedViews(train, params.cached_augmentations, params.augmentation, params.seed)

    def examples_by_epoch(cache: ActivationCache) -> Callable[[int], _Examples]:
        def examples(epoch: int) -> _Examples:
            chosen = np.random.default_rng([params.seed, epoch]).integers(cache.n_rows // len(train), size=len(train))
            return _CachedExamples(cache, chosen * len(train) + np.arange(len(train)), train.labels)

        return examples

    cut_train = cache_activations(lower, views, folder / "cut-train")
    cut_validation = cache_activations(lower, validation, folder / "cut-validation")
    features_train = cache_features(upper, cut_train, folder / "features-train")
    features_validation = cache_features(upper, cut_validation, folder / "features-validation")

    def data(layers: Sequence[keras.Layer], cache: ActivationCache, validation_cache: ActivationCache) -> _PhaseData:
        example = keras.Input(cache.shape)
        model = keras.Model(example, _through(layers, example))
        every = np.arange(len(validation))
        return _PhaseData(model, examples_by_epoch(cache), _CachedExamples(validation_cache, every, validation.labels))

    return (
        data(head, features_train, features_validation),
        data([upper, *head], cut_train, cut_validation),
    )


def _through(layers: Sequence[keras.Layer], values: keras.KerasTensor) -> keras.KerasTensor:
    for layer in layers:
        values = layer(values)
    return values


def _fit_phase(data: _PhaseData, name: str, phase: Phase, params: Finetune, history: TrainingHistory) -> None:
    """Train a phase epoch by epoch; the final weights are those of the best epoch with patience, else of the last."""
    model, folder = data.model, history.path.parent
    optimizer = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[phase.optimizer]
    model.compile(  # after `trainable` has changed
        optimizer=optimizer(phase.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],  # of logits
    )
    model.optimizer.build(model.trainable_variables)
    n_done = n_epochs_done(folder, name)
    losses = [row["val_loss"] for row in history.rows if row["phase"] == name][:n_done]
    if losses:
        model.load_weights(weights_file(folder, name, n_done - 1))
    while not _is_over(losses, phase):
        epoch = len(losses)
        _reseed(model, params.seed, epoch)
        fitted = model.fit(
            _Batches(data.train(epoch), params.batch_size, np.random.default_rng([params.seed, epoch])),
            validation_data=_Batches(data.validation, params.batch_size, None),
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,  # the batches are already shuffled, with the seed of this epoch
            verbose=1 if sys.stdout.isatty() else 2,  # a progress bar in a terminal, one line per epoch in a log
        )
        values = {key: float(series[0]) for key, series in fitted.history.items()}
        history.add(name, epoch, values)
        losses.append(values["val_loss"])
        save_best_and_last_weights(model, folder, name, losses)
    if phase.patience_epochs is not None:
        model.load_weights(weights_file(folder, name, int(np.argmin(losses))))


def _is_over(losses: list[float], phase: Phase) -> bool:
    if phase.patience_epochs is not None and losses:
        n_worse = len(losses) - 1 - int(np.argmin(losses))
        if n_worse >= phase.patience_epochs:
            return True
    return len(losses) == phase.max_epochs


def _reseed(model: keras.Model, seed: int, epoch: int) -> None:
    """Seed dropout and augmentation for an epoch, so that it does not depend on the epochs before."""
    for number, layer in enumerate(model.layers):
        for attribute in ("seed_generator", "generator"):
            if hasattr(layer, attribute):
                getattr(layer, attribute).state.assign([seed + number, epoch])
