"""Training the tracer of crack lines on intact images on which cracks are drawn, and writing its graph."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

from pipeline.files import replacing_folder
from pipeline.models.network import image_input, to_openvino
from pipeline.models.tf import keras, tf
from pipeline.models.tracer_network import build_network
from pipeline.params import DrawnCracks
from pipeline.training.drawn_cracks import Example, GreyImage, draw_example
from pipeline.training.hairline_cracks import in_random_orientation

log = logging.getLogger(__name__)

CROP_PX = 256
BATCH_IMAGES = 8
NEW_IMAGES = 3  # of a batch; the others are kept ones in another orientation, because drawing takes as long as training
KEPT_IMAGES = 3000
LEARNING_RATE = 2e-3  # at first; it falls to 0 along a cosine
PART_STEPS = 100  # after which the weights are kept and the loss is logged
WEIGHTS_SUFFIX = ".weights.h5"
CRACK_WEIGHT = 3.0  # of a pixel of a crack in the cross-entropy
ENTROPY_WEIGHT = 4.0  # against the Dice loss


def crack_loss(label: tf.Tensor, logit: tf.Tensor) -> tf.Tensor:
    """Return weighted cross-entropy plus Dice loss over the pixels that are labelled 0 or 1."""
    label, logit = tf.cast(label, tf.float32), tf.cast(logit, tf.float32)
    known = tf.cast(label < 2, tf.float32)
    truth, probability = label * known, tf.sigmoid(logit) * known
    entropy = known * tf.nn.weighted_cross_entropy_with_logits(truth, logit, CRACK_WEIGHT)
    dice = 1 - (2 * tf.reduce_sum(probability * truth) + 1) / (tf.reduce_sum(probability) + tf.reduce_sum(truth) + 1)
    return ENTROPY_WEIGHT * tf.reduce_sum(entropy) / tf.reduce_sum(known) + dice


def batches(
    examples: Iterator[Example], rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]]:
    """Yield batches of images and labels, (BATCH_IMAGES, CROP_PX, CROP_PX, 1) each, for ever."""
    kept: list[Example] = []
    while True:
        kept = [*kept[-KEPT_IMAGES:], *(next(examples) for _ in range(NEW_IMAGES))]
        chosen = [*kept[-NEW_IMAGES:], *(kept[rng.integers(len(kept))] for _ in range(BATCH_IMAGES - NEW_IMAGES))]
        turned = np.stack([in_random_orientation(np.stack(pair, axis=-1), rng) for pair in chosen])
        yield turned[..., :1].astype(np.float32), turned[..., 1:]


def train(examples: Iterator[Example], n_steps: int, rng: np.random.Generator, checkpoint: Path) -> keras.Model:
    """Return a trained network; a killed training is resumed from the folder `checkpoint`."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")  # twice as fast where the processor has such numbers
    try:
        network = build_network()
    finally:  # layers keep the policy that they were built with
        keras.mixed_precision.set_global_policy("float32")
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, n_steps)
    network.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=1.0), crack_loss)
    n_parts = max(1, n_steps // PART_STEPS)
    n_each = math.ceil(n_steps / n_parts)
    n_done = 0
    for weights in checkpoint.glob(f"*{WEIGHTS_SUFFIX}"):
        n_done = int(weights.name.removesuffix(WEIGHTS_SUFFIX))
        log.info("tracer: resuming after %d of %d steps", n_done * n_each, n_parts * n_each)
        network.optimizer.build(network.trainable_variables)
        network.load_weights(weights)
        rng.random(n_done)  # so that it is not trained on the same drawings again

    def finish(part: int, logs: dict[str, float]) -> None:
        with replacing_folder(checkpoint) as folder:
            network.save_weights(folder / f"{part + 1}{WEIGHTS_SUFFIX}")
        log.info("tracer: %d of %d steps, loss %.2f", (part + 1) * n_each, n_parts * n_each, logs["loss"])

    network.fit(
        batches(examples, rng),
        steps_per_epoch=n_each,
        initial_epoch=n_done,
        epochs=n_parts,
        shuffle=False,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=finish)],
        verbose=0,
    )
    trained = build_network()
    trained.set_weights(network.get_weights())
    return trained


def write_tracer(network: keras.Model, path: Path) -> None:
    """Write the graph: uint8 RGB (n, h, w, 3) -> {"likelihood": (n, h, w, 1), 0..1}, with weights of half precision."""
    image = image_input()
    grey = keras.ops.mean(keras.ops.cast(image, "float32"), axis=-1, keepdims=True)
    graph = keras.Model(image, {"likelihood": keras.ops.sigmoid(network(grey, training=False))})
    openvino.save_model(to_openvino(graph), path, compress_to_fp16=True)


def fit_tracer(
    image: Callable[[int], GreyImage], n_images: int, settings: DrawnCracks, checkpoint: Path, path: Path
) -> None:
    """Train a tracer on cracks drawn on n_images intact images, which `image` returns; write its graph to `path`.

    Its weights are written beside it. A killed training is resumed from the folder `checkpoint`. Two trainings differ
    by more than rounding, as the order of sums does on each processor.
    """
    keras.utils.set_random_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    examples = (draw_example(image(int(rng.integers(n_images))), CROP_PX, rng) for _ in itertools.count())
    write_tracer(train(examples, settings.n_steps, rng, checkpoint), path)
