"""Build and run graphs from uint8 RGB of any size to features and a logit.

Resizing and scaling are layers of the graph, so that embedding, training, evaluation and serving cannot differ.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.data.images import Images, batches_by_size
from pipeline.models.backbones import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from pipeline.models.tf import keras, tf
from pipeline.params import Backbone

if TYPE_CHECKING:
    import openvino

BATCH_IMAGES = 64  # larger ones do not run faster on a CPU


def preprocessed(image: keras.KerasTensor, image_size_px: int) -> keras.KerasTensor:
    """Return uint8 RGB, (batch, height, width, 3), as normalised float32, (batch, size, size, 3)."""
    # Cast to float first: resizing uint8, Keras would round to whole grey levels. Scale only after resizing: scaling
    # every pixel of the original takes an eighth of the time of a small network.
    values = keras.ops.cast(image, "float32")
    keras.Model(image, values).operations[-1].name = "to_float"  # Keras would number it, differently in each graph
    values = keras.layers.Resizing(image_size_px, image_size_px, interpolation="bilinear", name="resize")(values)
    scale = [1 / 255 / std for std in IMAGENET_STD]
    offset = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return keras.layers.Rescaling(scale, offset, name="normalise")(values)


def image_input() -> keras.KerasTensor:
    """Return the graph's input: uint8 RGB, (batch, height, width, 3), any height and width."""
    return keras.Input(shape=(None, None, 3), dtype="uint8", name="image")


def build_embedder(backbone: Backbone) -> keras.Model:
    """Return the frozen network: uint8 RGB (batch, height, width, 3) -> {"features": (batch, n_features)}."""
    image = image_input()
    network = build_backbone(backbone.architecture, backbone.feature_layers)
    features = network(preprocessed(image, backbone.image_size_px), training=False)
    return keras.Model(image, {"features": features}, name="embedder")


def build_classifier(network: keras.Model, image_size_px: int, head: Sequence[keras.Layer]) -> keras.Model:
    """Return the uncalibrated graph: uint8 RGB (batch, height, width, 3) -> {"logit": (batch, 1), "features"}.

    Images are resized for `network`, which returns the features, (batch, n_features), and `head` the logit of these.
    """
    image = image_input()
    features = network(preprocessed(image, image_size_px), training=False)
    logit = features
    for layer in head:
        logit = layer(logit)
    return keras.Model(image, {"logit": logit, "features": features}, name="classifier")


def as_tf_function(model: keras.Model) -> "tf.types.experimental.GenericFunction":
    """Return `model` as a tf.function: uint8 RGB (batch, height, width, 3), of any size -> its outputs by name.

    It is traced once for all sizes: a trace for each size would take seconds on a folder of photos of many sizes.
    """
    return tf.function(
        lambda image: model(image, training=False),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="image")],
    )


def to_openvino(model: keras.Model) -> "openvino.Model":
    """Return `model` (uint8 RGB images -> its outputs by name) converted to OpenVINO."""
    import openvino

    if sys.version_info >= (3, 13):
        from openvino.frontend.tensorflow import utils

        # OpenVINO 2026.4 looks up this version in a way that is a NameError on Python 3.13: `exec("del tensorflow")`.
        utils.get_environment_setup = lambda framework: {"tensorflow": tf.__version__}
    return openvino.convert_model(as_tf_function(model).get_concrete_function())


def run_in_batches(
    model: keras.Model, images: Images, *, progress: str
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]]:
    """Run `model`, of uint8 (batch, height, width, 3), in batches of one size; yield (positions, outputs by name)."""
    compute = as_tf_function(model)
    with tqdm(total=len(images.sizes), desc=progress, unit=" images", disable=None) as bar:
        for positions in batches_by_size(images.sizes, BATCH_IMAGES):
            batch = np.stack([images.pixels(int(position)) for position in positions])
            yield positions, {name: output.numpy() for name, output in compute(batch).items()}
            bar.update(len(positions))


def logits_and_features(
    classifier: keras.Model, images: Images, *, progress: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]:
    """Return the logits, (n,), and features, (n, n_features), of all images by an uncalibrated classifier."""
    n_images = len(images.sizes)
    logits = np.empty(n_images, np.float32)
    features = np.empty((n_images, classifier.output["features"].shape[-1]), np.float16)
    for positions, outputs in run_in_batches(classifier, images, progress=progress):
        logits[positions], features[positions] = outputs["logit"][:, 0], outputs["features"]
    return logits, features
