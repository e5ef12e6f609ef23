"""Fine-tuning: the head of a pre-trained network, then its upper blocks, on augmented images."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.backbones import build_backbone
from pipeline.errors import CracksError
from pipeline.files import write_text
from pipeline.images import LabelledImages, Pixels, batches_by_size
from pipeline.network import build_classifier, image_input, preprocessing_layers
from pipeline.params import Augmentation, Backbone, Finetune, Phase
from pipeline.tf import keras

EpochReport = Callable[[int, dict[str, float]], None]  # step from 0 over all phases, values of the epoch


@dataclass
class History:
    """Rows of an epoch each, written to `path` as they come, so that a killed training knows what it had done."""

    path: Path
    report: EpochReport
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def add(self, phase: str, epoch: int, values: dict[str, float]) -> None:
        """Keep the row of an epoch; rows of the same phase from this epoch on are of a run that was killed."""
        kept = [row for row in self.rows if row["phase"] != phase or row["epoch"] < epoch]
        self.rows = [*kept, {"step": len(kept), "phase": phase, "epoch": epoch, **values}]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.report(len(kept), values)


class _EpochCallback(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, history: History, phase: str) -> None:
        super().__init__()
        self._history = history
        self._phase = phase

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._history.add(self._phase, epoch, {name: float(value) for name, value in (logs or {}).items()})


def _compile(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],  # of logits
    )


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of one image size each, decoded by two workers while the network computes, shuffled every epoch."""

    def __init__(self, images: LabelledImages, batch_size: int, rng: np.random.Generator | None) -> None:
        super().__init__(workers=2, max_queue_size=8)
        self._images = images
        self._batch_size = batch_size
        self._rng = rng
        self._deal()

    def _deal(self) -> None:
        order = np.arange(len(self._images)) if self._rng is None else self._rng.permutation(len(self._images))
        batches = [order[batch] for batch in batches_by_size(self._images.sizes[order], self._batch_size)]
        if self._rng is not None:
            self._rng.shuffle(batches)
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Pixels, npt.NDArray[np.float32]]:
        positions = self._batches[index]
        pixels = np.stack([self._images.pixels(int(position)) for position in positions])
        return pixels, self._images.labels[positions].astype(np.float32)[:, None]

    def on_epoch_end(self) -> None:
        if self._rng is not None:
            self._deal()


def _augmentation_layers(augmentation: Augmentation, seed: int) -> list[keras.Layer]:
    return [
        keras.layers.RandomFlip(augmentation.flips, seed=seed),
        keras.layers.RandomRotation(augmentation.max_rotation_turns, fill_mode="reflect", seed=seed + 1),
    ]


def _always_frozen(network: keras.Model, first_layer: str) -> list[keras.Layer]:
    names = [layer.name for layer in network.layers]
    if first_layer not in names:
        raise CracksError(
            f"unfreeze_from is {first_layer!r}, the backbone {network.name} has no such layer. "
            f"Its layers are {', '.join(name for name in names if name.endswith('_expand') or 'conv' in name)}."
        )
    # Only frozen does BatchNorm stay in inference mode: `training=False` at the call gives way to what `fit` says.
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    return [*network.layers[: names.index(first_layer)], *norms]


def fit_finetune(
    backbone: Backbone, train: LabelledImages, validation: LabelledImages, params: Finetune, history: History
) -> keras.Model:
    """Return the uncalibrated classifier that fine-tuning has made of the pre-trained network.

    First the head alone learns, then the blocks from `unfreeze_from` on as well. BatchNorm stays as it was pre-trained,
    in inference mode. What a killed run had finished, in the folder of `history`, is taken up again.
    """
    keras.utils.set_random_seed(params.seed)
    network = build_backbone(backbone.architecture, backbone.taps)
    always_frozen = _always_frozen(network, params.unfreeze_from)  # before anything is trained under a misspelt name
    head = keras.layers.Dense(1, name="head")
    image = image_input()
    values = image
    for layer in [
        *preprocessing_layers(backbone.image_size_px),  # (batch, size, size, 3)
        *_augmentation_layers(params.augmentation, params.seed),
    ]:
        values = layer(values)
    values = keras.layers.Dropout(params.dropout, seed=params.seed)(network(values))
    model = keras.Model(image, head(values))

    network.trainable = False
    _fit_phase(model, "head", params.head, train, validation, params, history)
    network.trainable = True
    for layer in always_frozen:
        layer.trainable = False
    _fit_phase(model, "tuning", params.tuning, train, validation, params, history)
    return build_classifier(network, backbone.image_size_px, [head])


def _fit_phase(
    model: keras.Model,
    name: str,
    phase: Phase,
    train: LabelledImages,
    validation: LabelledImages,
    params: Finetune,
    history: History,
) -> None:
    folder = history.path.parent
    finished = folder / f"{name}.weights.h5"
    if finished.exists():
        model.load_weights(finished)
        return
    optimizers = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}
    _compile(model, optimizers[phase.optimizer](phase.learning_rate))  # after `trainable` has changed
    callbacks = [_EpochCallback(history, name), keras.callbacks.BackupAndRestore(str(folder / name))]
    if phase.patience_epochs is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=phase.patience_epochs, restore_best_weights=True))
    model.fit(
        _Batches(train, params.batch_size, np.random.default_rng(params.seed)),
        validation_data=_Batches(validation, params.batch_size, None),
        epochs=phase.max_epochs,
        verbose=1 if sys.stdout.isatty() else 2,  # a bar for a person, a line an epoch for a log
        callbacks=callbacks,
    )
    partial = folder / f"{name}.partial.weights.h5"
    model.save_weights(partial)
    partial.replace(finished)
