"""Train the tracer of crack lines, and write its graph, which ships with the project.

    python -m pipeline.training.build_tracer --intact metu.zip sdnet-subset.zip sdnet-more.zip [--steps 4500]

The archives are those of METU and SDNET2018. Only their intact images are used; cracks are drawn on them. It takes
half an hour on a core. Two trainings differ by more than rounding, as the order of sums does on each processor.
"""

import argparse
import io
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
from PIL import Image

from pipeline.crack_lines.tracer import TRACER_FILE
from pipeline.models.network import image_input, to_openvino
from pipeline.models.tf import keras, tf
from pipeline.stage import run_main
from pipeline.training.drawn_cracks import Example, GreyImage, draw_example
from pipeline.training.hairline_cracks import in_random_orientation

log = logging.getLogger(__name__)

INTACT = ("Negative", "Non-cracked")  # folders of intact images
TEST_PHOTOS = ("7029", "101")  # of SDNET2018, with which maps are measured
CROP_PX = 256
BATCH_IMAGES = 8
NEW_IMAGES = 3  # of a batch; the others are kept ones in another orientation, because drawing takes as long as training
KEPT_IMAGES = 3000
CHANNELS = (16, 32, 64, 96)
WINDOW = 15  # side of the surroundings for the local contrast, in units of 4 px
MIN_SPREAD = 4.0  # grey levels
LEARNING_RATE = 2e-3  # at first; it falls to 0 along a cosine
LOGGED_STEPS = 100  # after which the loss is shown
CRACK_WEIGHT = 3.0  # of a pixel of a crack in the cross-entropy
ENTROPY_WEIGHT = 4.0  # against the Dice loss


def local_contrast(grey: keras.KerasTensor) -> keras.KerasTensor:
    """Return grey levels, (n, h, w, 1), relative to their surroundings: to the spread there and to the brightness.

    So a faint crack on a smooth wall and a clear one on rough asphalt look alike. The result is (n, h, w, 2).
    """
    coarse = keras.layers.AveragePooling2D(4, 4, padding="same", dtype="float32")
    surroundings = keras.layers.AveragePooling2D(WINDOW, 1, padding="same", dtype="float32")
    # Keras's own layer for this needs a fixed size.
    fine = keras.layers.Lambda(lambda x: tf.image.resize(x, 4 * tf.shape(x)[1:3]), dtype="float32")
    mean = fine(surroundings(coarse(grey)))
    square = fine(surroundings(coarse(keras.ops.square(grey))))
    spread = keras.ops.sqrt(keras.ops.maximum(square - keras.ops.square(mean), MIN_SPREAD**2))
    difference = grey - mean
    return keras.ops.concatenate([difference / spread / 2, 4 * difference / keras.ops.maximum(mean, 16.0)], axis=-1)


def _convolved(x: keras.KerasTensor, n_channels: int, stride: int = 1) -> keras.KerasTensor:
    x = keras.layers.Conv2D(n_channels, 3, stride, padding="same", use_bias=False)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.95)(x))


def build_network() -> keras.Model:
    """Return the network: grey levels 0..255, float32, (n, h, w, 1) -> logit of a crack, (n, h, w, 1).

    Height and width are multiples of 16. It is a U-Net that works at half of the resolution and below.
    """
    grey = keras.Input((None, None, 1))
    x = _convolved(local_contrast(grey), CHANNELS[0], 2)
    skips = []
    for n_channels in CHANNELS[1:]:
        skips.append(_convolved(x, x.shape[-1]))
        x = _convolved(skips[-1], n_channels, 2)
    x = _convolved(_convolved(x, CHANNELS[-1]), CHANNELS[-1])
    for skip in reversed(skips):
        x = keras.layers.UpSampling2D(2)(keras.layers.Conv2D(skip.shape[-1], 1)(x))
        x = _convolved(keras.ops.concatenate([x, skip], axis=-1), skip.shape[-1])
    rare = keras.initializers.Constant(-3.0)  # few pixels are of a crack
    parts = keras.layers.Conv2D(4, 1, bias_initializer=rare, dtype="float32")(x)
    return keras.Model(grey, keras.layers.Lambda(lambda x: tf.nn.depth_to_space(x, 2))(parts))


def crack_loss(label: tf.Tensor, logit: tf.Tensor) -> tf.Tensor:
    """Return weighted cross-entropy plus Dice loss over the pixels that are labelled 0 or 1."""
    label, logit = tf.cast(label, tf.float32), tf.cast(logit, tf.float32)
    known = tf.cast(label < 2, tf.float32)
    truth, probability = label * known, tf.sigmoid(logit) * known
    entropy = known * tf.nn.weighted_cross_entropy_with_logits(truth, logit, CRACK_WEIGHT)
    dice = 1 - (2 * tf.reduce_sum(probability * truth) + 1) / (tf.reduce_sum(probability) + tf.reduce_sum(truth) + 1)
    return ENTROPY_WEIGHT * tf.reduce_sum(entropy) / tf.reduce_sum(known) + dice


def read_intact(archives: list[Path]) -> list[GreyImage]:
    """Return the intact images of archives of METU and SDNET2018, grey, without those of TEST_PHOTOS."""
    images = []
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                place = Path(name)
                if place.parent.name in INTACT and place.suffix and place.stem.split("-")[0] not in TEST_PHOTOS:
                    images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L")))
    return images


def drawn_examples(images: list[GreyImage], rng: np.random.Generator) -> Iterator[Example]:
    """Yield drawn images with their labels, (CROP_PX, CROP_PX) each, for ever."""
    while True:
        yield draw_example(images[rng.integers(len(images))], CROP_PX, rng)


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


def train(examples: Iterator[Example], n_steps: int, rng: np.random.Generator) -> keras.Model:
    """Return a trained network."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")  # twice as fast where the processor has such numbers
    network = build_network()
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, n_steps)
    network.compile(keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=1.0), crack_loss)
    n_each = min(n_steps, LOGGED_STEPS)
    network.fit(batches(examples, rng), steps_per_epoch=n_each, epochs=n_steps // n_each, shuffle=False, verbose=2)
    keras.mixed_precision.set_global_policy("float32")
    trained = build_network()
    trained.set_weights(network.get_weights())
    return trained


def write_tracer(network: keras.Model, path: Path) -> None:
    """Write the graph: uint8 RGB (n, h, w, 3) -> {"likelihood": (n, h, w, 1), 0..1}, with weights of half precision."""
    image = image_input()
    grey = keras.ops.mean(keras.ops.cast(image, "float32"), axis=-1, keepdims=True)
    graph = keras.Model(image, {"likelihood": keras.ops.sigmoid(network(grey, training=False))})
    openvino.save_model(to_openvino(graph), path, compress_to_fp16=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intact", type=Path, nargs="+", required=True, help="archives with intact images")
    parser.add_argument("--steps", type=int, default=4500, help="of training, of 8 images each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    network = train(drawn_examples(read_intact(args.intact), rng), args.steps, rng)
    write_tracer(network, TRACER_FILE)
    n_bytes = sum(path.stat().st_size for path in (TRACER_FILE, TRACER_FILE.with_suffix(".bin")))
    log.info("%s and its weights: %d bytes", TRACER_FILE, n_bytes)


if __name__ == "__main__":
    run_main(main)
