"""Training a Keras model on batches of labelled examples, so that a killed training resumes with the same result."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images, batches_by_size
from pipeline.models.metrics import Labels
from pipeline.models.tf import keras, tf
from pipeline.params import ConvHead, Finetune
from pipeline.training.activation_cache import ActivationCache
from pipeline.training.checkpoints import TrainingHistory

ViewsOfEpoch = Callable[[int], npt.NDArray[np.int64]]  # epoch -> number of the view of each image to train on, (n,)
Views = Images | ActivationCache  # all images, then further views of all of them, or the cached activations of these


class Batches:
    """Batches of views of one size; with `views_of_epoch` shuffled, an epoch by the seed and its own number alone."""

    def __init__(
        self,
        views: Views,
        labels: Labels,
        params: Finetune | ConvHead,
        views_of_epoch: ViewsOfEpoch | None,
        weights: npt.NDArray[np.float64] | None = None,
        n_outputs: int = 1,
    ) -> None:
        self._views, self._params, self._views_of_epoch = views, params, views_of_epoch
        self._labels = np.repeat(labels.astype(np.float32)[:, None], n_outputs, axis=1)  # each output has the same
        self._weights = np.ones(len(labels)) if weights is None else weights  # (n,), of the images in the loss
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Choose a view of each image and shuffle the batches, if these are for training."""
        n = len(self._labels)
        positions = np.arange(n)
        if self._views_of_epoch:
            rng = np.random.default_rng([self._params.seed, epoch])
            positions = rng.permutation(self._views_of_epoch(epoch) * n + positions)
        batches = batches_by_size(self._views.sizes[positions], self._params.batch_size)
        self._batches = [positions[batch] for batch in batches]
        if self._views_of_epoch:
            rng.shuffle(self._batches)

    def batch(self, index: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the examples of a batch of the epoch, (n, …), their labels, 0 or 1, (n, n_outputs), and weights."""
        positions = self._batches[index]
        inputs = np.stack([self._views.pixels(int(position)) for position in positions])
        images = positions % len(self._labels)
        return inputs, self._labels[images], self._weights[images].astype(np.float32)

    def dataset(self, input_shape: Sequence[int | None]) -> "tf.data.Dataset":
        """Return the batches of the epoch that was started last, prepared while the network computes."""
        dtypes = [array.dtype for array in self.batch(0)]

        def load(index: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor", "tf.Tensor"]:
            inputs, labels, weights = tf.numpy_function(self.batch, [index], dtypes)
            shaped = tf.ensure_shape(inputs, input_shape), tf.ensure_shape(labels, (None, self._labels.shape[1]))
            return *shaped, tf.ensure_shape(weights, (None,))

        n_batches = len(self._batches)  # the same in each epoch, as all views of an image have its size
        return tf.data.Dataset.range(n_batches).map(load, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


class PhaseData(NamedTuple):
    """The model of a phase, from an example to the logit, and its batches of examples."""

    model: keras.Model
    train: Batches
    validation: Batches


class _EarlyStopping(keras.callbacks.EarlyStopping):  # type: ignore[misc]
    """Early stopping that also counts the epochs before a resumed training was killed."""

    def __init__(self, patience_epochs: int, losses: list[float]) -> None:
        super().__init__("val_loss", patience=patience_epochs, mode="min")
        self._losses = losses

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        super().on_train_begin(logs)
        for epoch, loss in enumerate(self._losses):
            self.on_epoch_end(epoch, {"val_loss": loss})


def fit_phase(
    data: PhaseData,
    name: str,
    optimizer: keras.optimizers.Optimizer,
    max_epochs: int,
    patience_epochs: int | None,
    params: Finetune | ConvHead,
    history: TrainingHistory,
    label_smoothing: float = 0.0,
) -> None:
    """Train a phase; the final weights are those of the best epoch with patience, else of the last.

    A killed phase is resumed as docs/decisions/0013-resuming-fine-tuning.md says.
    """
    model = data.model
    model.compile(  # after `trainable` has changed
        optimizer=optimizer,
        loss=keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing),
        weighted_metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],  # of logits
    )
    model.optimizer.build(model.trainable_variables)
    weights = str(history.path.parent / (name + "-{epoch}.weights.h5"))  # Keras starts with 1 in names of files
    losses = history.losses(name)
    if losses:
        model.load_weights(weights.format(epoch=len(losses)))
    if not _has_stopped(losses, patience_epochs):
        model.fit(
            data.train.dataset(model.input_shape),
            validation_data=data.validation.dataset(model.input_shape),
            initial_epoch=len(losses),
            epochs=max_epochs,
            shuffle=False,  # the batches are already shuffled, with the seed of the epoch
            callbacks=_callbacks(data, name, patience_epochs, params, history, weights),
            verbose=1 if sys.stdout.isatty() else 2,  # a progress bar in a terminal, one line per epoch in a log
        )
    if patience_epochs is not None:
        model.load_weights(weights.format(epoch=1 + int(np.argmin(history.losses(name)))))


def _has_stopped(losses: list[float], patience_epochs: int | None) -> bool:
    """Return whether a phase with these losses had already stopped early when the training was killed."""
    n_worse = len(losses) - 1 - int(np.argmin(losses)) if losses else 0
    return patience_epochs is not None and n_worse >= patience_epochs


def _callbacks(
    data: PhaseData,
    name: str,
    patience_epochs: int | None,
    params: Finetune | ConvHead,
    history: TrainingHistory,
    weights: str,
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a phase; those at the end of an epoch are called in this order."""

    def start(epoch: int, _: object) -> None:
        data.train.start_epoch(epoch)
        for number, layer in enumerate(data.model.layers, start=1):
            if isinstance(layer, keras.layers.Dropout):
                layer.seed_generator.state.assign([params.seed + number, epoch])

    def finish(epoch: int, logs: dict[str, float]) -> None:
        history.add(name, epoch, logs)
        for earlier in set(range(epoch)) - {int(np.argmin(history.losses(name)))}:
            Path(weights.format(epoch=1 + earlier)).unlink(missing_ok=True)

    callbacks = [
        keras.callbacks.ModelCheckpoint(weights, save_weights_only=True),
        keras.callbacks.LambdaCallback(on_epoch_begin=start, on_epoch_end=finish),
    ]
    if patience_epochs is not None:
        callbacks.append(_EarlyStopping(patience_epochs, history.losses(name)))
    return callbacks
