"""The network of the tracer in Keras: to train it, and as a part of a classifier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.models.tf import keras, tf

CHANNELS = (16, 32, 64, 96)
WINDOW = 15  # side of the surroundings for the local contrast, in units of 4 px
MIN_SPREAD = 4.0  # grey levels

Convolution = Callable[..., keras.KerasTensor]  # (x, number of channels, stride) -> x


def build_network() -> keras.Model:
    """Return the network to train: grey levels 0..255, float32, (n, h, w, 1) -> logit of a crack, (n, h, w, 1).

    Height and width are multiples of 16.
    """
    grey = keras.Input((None, None, 1))
    # Keras's own layer for this needs a fixed size.
    enlarged = keras.layers.Lambda(lambda x: tf.image.resize(x, 4 * tf.shape(x)[1:3]), dtype="float32")
    parts = _parts(grey, enlarged, _normalised)
    return keras.Model(grey, keras.layers.Lambda(lambda x: tf.nn.depth_to_space(x, 2))(parts))


def trained_network(graph: Path, side_px: int) -> keras.Model:
    """Return the network with the weights of a graph, of OpenVINO: grey (n, side_px, side_px, 1) -> logits of a crack.

    The logits, (n, side_px / 2, side_px / 2, 4), are those of 2 x 2 pixels at each position. `side_px` is a multiple of
    16: with a fixed size, a model that contains the network can be saved and loaded without code of its own.
    """
    grey = keras.Input((side_px, side_px, 1))
    enlarged = keras.layers.UpSampling2D(4, interpolation="bilinear")
    network = keras.Model(grey, _parts(grey, enlarged, _with_bias), name="tracer")
    network.set_weights(_weights(graph))
    return network


def local_contrast(grey: keras.KerasTensor, enlarged: keras.layers.Layer) -> keras.KerasTensor:
    """Return grey levels, (n, h, w, 1), relative to their surroundings: to the spread there and to the brightness.

    So a faint crack on a smooth wall and a clear one on rough asphalt look alike. The result is (n, h, w, 2);
    `enlarged` makes an image four times as large.
    """
    coarse = keras.layers.AveragePooling2D(4, 4, padding="same", dtype="float32")
    surroundings = keras.layers.AveragePooling2D(WINDOW, 1, padding="same", dtype="float32")
    mean = enlarged(surroundings(coarse(grey)))
    square = enlarged(surroundings(coarse(keras.ops.square(grey))))
    spread = keras.ops.sqrt(keras.ops.maximum(square - keras.ops.square(mean), MIN_SPREAD**2))
    difference = grey - mean
    return keras.ops.concatenate([difference / spread / 2, 4 * difference / keras.ops.maximum(mean, 16.0)], axis=-1)


def _parts(grey: keras.KerasTensor, enlarged: keras.layers.Layer, convolved: Convolution) -> keras.KerasTensor:
    """Return the logits of 2 x 2 pixels at each position, by a U-Net that works at half of the resolution and below."""
    x = convolved(local_contrast(grey, enlarged), CHANNELS[0], 2)
    skips = []
    for n_channels in CHANNELS[1:]:
        skips.append(convolved(x, x.shape[-1]))
        x = convolved(skips[-1], n_channels, 2)
    x = convolved(convolved(x, CHANNELS[-1]), CHANNELS[-1])
    for skip in reversed(skips):
        x = keras.layers.UpSampling2D(2)(keras.layers.Conv2D(skip.shape[-1], 1)(x))
        x = convolved(keras.ops.concatenate([x, skip], axis=-1), skip.shape[-1])
    rare = keras.initializers.Constant(-3.0)  # few pixels are of a crack
    return keras.layers.Conv2D(4, 1, bias_initializer=rare, dtype="float32")(x)


def _normalised(x: keras.KerasTensor, n_channels: int, stride: int = 1) -> keras.KerasTensor:
    x = keras.layers.Conv2D(n_channels, 3, stride, padding="same", use_bias=False)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.95)(x))


def _with_bias(x: keras.KerasTensor, n_channels: int, stride: int = 1) -> keras.KerasTensor:
    """Return what `_normalised` does after OpenVINO has folded the normalisation into the convolution."""
    return keras.layers.Conv2D(n_channels, 3, stride, padding="same", activation="relu")(x)


def _weights(graph: Path) -> list[npt.NDArray[Any]]:
    """Return the kernels, (h, w, in, out), and biases, (out,), of a graph, in the order in which they are used."""
    import openvino

    operations = openvino.Core().read_model(graph).get_ordered_ops()
    constants = [operation.data for operation in operations if operation.get_type_name() == "Constant"]
    arrays = [np.array(data) for data in constants if data.dtype == np.float16 and data.size > 1]
    return [array.transpose(2, 3, 1, 0) if len(array) > 1 else array.ravel() for array in arrays]
