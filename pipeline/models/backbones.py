"""Convolutional networks that turn an image into features, with weights pre-trained on ImageNet.

EfficientNet-Lite and MobileNetV2 are both stacks of inverted residuals with ReLU6, so one builder serves both.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from pipeline.errors import CracksError
from pipeline.models.tf import keras
from pipeline.models.weights import read_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue, 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)


class BlockGroup(NamedTuple):
    """Consecutive inverted residuals; only the first one has the stride and changes the number of channels."""

    repeats: int
    kernel_size_px: int
    stride_px: int
    expansion: int
    channels: int


class Architecture(NamedTuple):
    """The parameters of a network."""

    groups: tuple[BlockGroup, ...]
    strided_padding: Literal["same", "symmetric"]  # of TensorFlow or PyTorch; they differ for even image sizes
    norm_epsilon: float


_EFFICIENTNET_B0_GROUPS = (
    BlockGroup(1, 3, 1, 1, 16),
    BlockGroup(2, 3, 2, 6, 24),
    BlockGroup(2, 5, 2, 6, 40),
    BlockGroup(3, 3, 2, 6, 80),
    BlockGroup(3, 5, 1, 6, 112),
    BlockGroup(4, 5, 2, 6, 192),
    BlockGroup(1, 3, 1, 6, 320),
)
_MOBILENET_V2_GROUPS = (
    BlockGroup(1, 3, 1, 1, 16),
    BlockGroup(2, 3, 2, 6, 24),
    BlockGroup(3, 3, 2, 6, 32),
    BlockGroup(4, 3, 2, 6, 64),
    BlockGroup(3, 3, 1, 6, 96),
    BlockGroup(3, 3, 2, 6, 160),
    BlockGroup(1, 3, 1, 6, 320),
)

# EfficientNet: arXiv:1905.11946; its Lite variant, without squeeze-and-excitation and with ReLU6:
# models/official/efficientnet/lite in the TensorFlow TPU repository. MobileNetV2: arXiv:1801.04381.
ARCHITECTURES: Mapping[str, Architecture] = {
    "efficientnet-lite0": Architecture(_EFFICIENTNET_B0_GROUPS, "same", 1e-3),
    "mobilenet-v2": Architecture(_MOBILENET_V2_GROUPS, "symmetric", 1e-5),
}


def build_backbone(architecture: str, feature_layers: Sequence[str] = (), *, pretrained: bool = True) -> keras.Model:
    """Build the network `architecture`, with ImageNet weights or random ones.

    Input: float32 (batch, height, width, 3), RGB in 0..1 minus `IMAGENET_MEAN`, divided by `IMAGENET_STD`; height and
    width of 32 px or more. Output: float32 (batch, n_features), in 0..6: mean and maximum of each convolution in
    `feature_layers`, such as "block_11_expand" (a thin crack hardly changes a mean), or else 1280 means of the last.

    The layers are called "stem_conv", "block_0_depthwise", "block_0_project", "block_1_expand", ..., "head_conv" and
    "features". The suffixes "_bn", "_relu", "_pad" and "_add" mark what belongs to a convolution or a block.

    Raises `CracksError` for an unknown architecture or feature layer, and for weights that are missing or damaged.
    """
    if architecture not in ARCHITECTURES:
        raise CracksError(f"There is no backbone {architecture!r}. Choose one of: {', '.join(ARCHITECTURES)}")
    network = ARCHITECTURES[architecture]
    inputs = x = keras.Input((None, None, 3), name="image")
    x = _convolve(x, "stem_conv", network, channels=32, kernel_size_px=3, stride_px=2)  # (n, h/2, w/2, 32)
    blocks = [
        group._replace(stride_px=1 if repeat else group.stride_px)
        for group in network.groups
        for repeat in range(group.repeats)
    ]
    for index, block in enumerate(blocks):
        x = _inverted_residual(x, f"block_{index}", network, block)
    x = _convolve(x, "head_conv", network, channels=1280)  # (n, h/32, w/32, 1280)
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)  # (n, 1280)
    model = keras.Model(inputs, features, name=architecture)
    if pretrained:
        # Both are in the order of the forward pass, whatever their names; the classifier of ImageNet is left out.
        arrays = [
            _keras_layout(array)
            for name, array in read_weights(architecture).items()
            if not name.endswith("num_batches_tracked") and not name.startswith("_fc.")
        ]
        model.set_weights(arrays)
    return _pool_feature_layers(model, feature_layers) if feature_layers else model


def _pool_feature_layers(model: keras.Model, feature_layers: Sequence[str]) -> keras.Model:
    names = {layer.name for layer in model.layers}
    known = [name.removesuffix("_relu") for name in names if name.endswith("_relu")]
    if unknown := sorted(set(feature_layers) - set(known)):
        raise CracksError(
            f"The backbone {model.name} has no convolution {', '.join(unknown)}, which feature_layers names. "
            f"Its convolutions are {', '.join(sorted(known))}."
        )
    pooled = []
    for layer in feature_layers:
        activation = model.get_layer(f"{layer}_relu").output  # (n, h, w, c)
        pooled.append(keras.layers.GlobalAveragePooling2D(name=f"{layer}_mean")(activation))  # (n, c)
        pooled.append(keras.layers.GlobalMaxPooling2D(name=f"{layer}_max")(activation))  # (n, c)
    # The name that version 0.1.0 gave the layer: with another one, the hash of an unchanged model would be another.
    return keras.Model(model.input, keras.layers.Concatenate(name="taps")(pooled), name=model.name)


def _inverted_residual(x: keras.KerasTensor, name: str, network: Architecture, block: BlockGroup) -> keras.KerasTensor:
    inputs, channels = x, x.shape[-1]
    if block.expansion > 1:
        x = _convolve(x, f"{name}_expand", network, channels=channels * block.expansion)
    x = _convolve(
        x, f"{name}_depthwise", network, kernel_size_px=block.kernel_size_px, stride_px=block.stride_px
    )  # (n, h/stride, w/stride, c * expansion)
    x = _convolve(x, f"{name}_project", network, channels=block.channels, relu=False)
    if block.stride_px == 1 and block.channels == channels:
        x = keras.layers.Add(name=f"{name}_add")([inputs, x])
    return x


def _convolve(
    x: keras.KerasTensor,
    name: str,
    network: Architecture,
    *,
    channels: int | None = None,
    kernel_size_px: int = 1,
    stride_px: int = 1,
    relu: bool = True,
) -> keras.KerasTensor:
    """Return `x` after a convolution (depthwise without `channels`), batch normalisation and ReLU6."""
    padding = "same"
    if stride_px > 1 and network.strided_padding == "symmetric":
        x = keras.layers.ZeroPadding2D(kernel_size_px // 2, name=f"{name}_pad")(x)
        padding = "valid"
    if channels is None:
        x = keras.layers.DepthwiseConv2D(kernel_size_px, stride_px, padding, use_bias=False, name=name)(x)
    else:
        x = keras.layers.Conv2D(channels, kernel_size_px, stride_px, padding, use_bias=False, name=name)(x)
    x = keras.layers.BatchNormalization(epsilon=network.norm_epsilon, name=f"{name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _keras_layout(array: np.ndarray) -> np.ndarray:
    if array.ndim != 4:
        return array
    if array.shape[1] == 1:  # depthwise: no other convolution here has a single input channel
        return array.transpose(2, 3, 0, 1)  # (c, 1, h, w) -> (h, w, c, 1)
    return array.transpose(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)
