"""A convolutional head: a small network on feature maps of a frozen backbone, beside a hidden layer on its features.

Pooled features say which patterns occur somewhere in an image; the maps say where, and a crack is a pattern that
continues. Both branches end in a logit, and the logits are averaged: their mistakes differ.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import CracksError
from pipeline.models.backbones import build_backbone
from pipeline.models.network import image_input, preprocessed
from pipeline.models.tf import keras
from pipeline.params import Backbone, ConvHead

N_BRANCHES = 2
HEAD = "conv_head"  # name of the head in the classifier


class Activations(NamedTuple):
    """What a frozen backbone hands to the head: its feature maps, largest first, then its features, as one vector."""

    network: keras.Model  # float32 (batch, height, width, 3) -> (batch, n_values)
    map_shapes: tuple[tuple[int, int, int], ...]  # height, width and channels of each map
    n_features: int

    @property
    def n_values(self) -> int:
        """Return the length of the vector."""
        return sum(height * width * channels for height, width, channels in self.map_shapes) + self.n_features

    def split(self, values: keras.KerasTensor) -> list[keras.KerasTensor]:
        """Return the maps, (batch, height, width, channels), and the features, (batch, n_features)."""
        ends, end = [], 0
        for height, width, channels in self.map_shapes:
            end += height * width * channels
            ends.append(end)
        *maps, features = keras.ops.split(values, ends, axis=1)
        shaped = [keras.layers.Reshape(shape)(part) for shape, part in zip(self.map_shapes, maps, strict=True)]
        return [*shaped, features]


def activations_of(backbone: Backbone, map_layers: Sequence[str]) -> Activations:
    """Return the frozen network that ends in what a head with these maps reads.

    Raises `CracksError` for a layer that the backbone lacks, or an image size at which the maps do not fit each other.
    """
    network = build_backbone(backbone.architecture, backbone.feature_layers)
    names = [layer.name for layer in network.layers]
    if unknown := [name for name in map_layers if name not in names]:
        raise CracksError(
            f"The backbone {network.name} has no layer {', '.join(unknown)}, which map_layers names. "
            f"Those at the end of a block are {', '.join(name for name in names if name.endswith('_add'))}."
        )
    maps = [network.get_layer(name).output for name in map_layers]
    size = (None, backbone.image_size_px, backbone.image_size_px, 3)
    shapes = tuple(shape[1:] for shape in keras.Model(network.input, maps).compute_output_shape(size))
    sides = [shape[0] for shape in shapes]
    if any(side % sides[1] and sides[1] % side for side in sides):
        raise CracksError(
            f"At image_size_px {backbone.image_size_px}, the feature maps of map_layers have {sides} positions a side, "
            "which are no multiples of each other. Choose a multiple of 32."
        )
    flat = [keras.layers.Flatten(name=f"{name}_values")(map_) for name, map_ in zip(map_layers, maps, strict=True)]
    values = keras.layers.Concatenate(name="activations")([*flat, network.output])
    return Activations(keras.Model(network.input, values, name=network.name), shapes, network.output.shape[-1])


def build_conv_head(activations: Activations, params: ConvHead) -> keras.Model:
    """Return the untrained head: float32 (batch, n_values) -> the logits of both branches, (batch, 2)."""
    values = keras.Input((activations.n_values,), name="activations")
    *maps, features = activations.split(values)
    logits = [_logit_of_maps(maps, params), _logit_of_features(features, params)]
    return keras.Model(values, keras.layers.Concatenate(name="logits")(logits), name=HEAD)


def conv_head_classifier(backbone: Backbone, activations: Activations, head: keras.Model) -> keras.Model:
    """Return the uncalibrated graph: uint8 RGB (batch, height, width, 3) -> {"logit": (batch, 1), "features"}."""
    image = image_input()
    values = activations.network(preprocessed(image, backbone.image_size_px), training=False)
    logit = keras.ops.mean(head(values, training=False), axis=1, keepdims=True)
    features = keras.ops.split(values, [activations.n_values - activations.n_features], axis=1)[1]
    return keras.Model(image, {"logit": logit, "features": features}, name="classifier")


def stored_weights(head: keras.Model) -> list[npt.NDArray[np.floating[Any]]]:
    """Return the weights of a head as a file has them: kernels float16, which halves its size, and the rest float32."""
    return [weight.astype(np.float16) if weight.ndim > 1 else weight for weight in head.get_weights()]


def _logit_of_maps(maps: Sequence[keras.KerasTensor], params: ConvHead) -> keras.KerasTensor:
    """Return the logit of feature maps, which are all brought to the size of the second."""
    layers, height = keras.layers, maps[1].shape[1]
    resized = []
    for map_ in maps:
        x = layers.BatchNormalization(center=False, scale=False)(map_)
        n_channels = params.n_channels if map_.shape[1] == height else params.n_channels // 2
        if map_.shape[1] > height:
            x = layers.Conv2D(n_channels, 3, map_.shape[1] // height, "same", use_bias=False)(x)
        else:
            x = layers.Conv2D(n_channels, 1, use_bias=False)(x)
        if map_.shape[1] < height:
            x = layers.UpSampling2D(height // map_.shape[1], interpolation="bilinear")(x)
        resized.append(x)
    x = _normalised(layers.Concatenate()(resized))
    x = _normalised(layers.Conv2D(params.n_channels, 1, use_bias=False)(layers.SpatialDropout2D(params.dropout)(x)))
    neighbours = _normalised(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    neighbours = layers.BatchNormalization()(layers.Conv2D(params.n_channels, 1, use_bias=False)(neighbours))
    x = layers.SpatialDropout2D(params.dropout)(layers.ReLU()(layers.Add()([x, neighbours])))
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    return layers.Dense(1)(layers.Dropout(params.dropout)(pooled))


def _normalised(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))


def _logit_of_features(features: keras.KerasTensor, params: ConvHead) -> keras.KerasTensor:
    layers = keras.layers
    x = layers.BatchNormalization(center=False, scale=False)(features)
    x = layers.Dense(params.n_hidden, activation="relu")(layers.Dropout(params.feature_dropout)(x))
    return layers.Dense(1)(layers.Dropout(params.feature_dropout)(x))
