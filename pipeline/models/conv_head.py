"""A convolutional head: a small network on feature maps of a frozen backbone, beside a hidden layer on its features.

Pooled features say which patterns occur somewhere in an image; the maps say where, and a crack is a pattern that
continues. A third branch, the tracer of crack lines, was trained on drawn cracks alone, so that it is as good on
structures that are not in the training data. Each branch ends in a logit, and the logits are averaged: their mistakes
differ.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import CracksError
from pipeline.models.backbones import build_backbone
from pipeline.models.model_files import TRACER_FILE
from pipeline.models.network import image_input, preprocessed
from pipeline.models.tf import keras
from pipeline.models.tracer_network import trained_network
from pipeline.params import Backbone, ConvHead

HEAD = "conv_head"  # name of the head in the classifier


class Activations(NamedTuple):
    """What frozen networks hand to the head, as one vector: the parts of `shapes`, one after the other."""

    network: keras.Model  # uint8 RGB (batch, height, width, 3), of any size -> (batch, n_values)
    # (1,) for the tracer, if it is used; (height, width, channels) of each feature map, largest first; (n_features,)
    shapes: tuple[tuple[int, ...], ...]

    @property
    def n_values(self) -> int:
        """Return the length of the vector."""
        return sum(map(math.prod, self.shapes))

    @property
    def n_features(self) -> int:
        """Return the number of the features, which are at the end of the vector."""
        return self.shapes[-1][0]

    def split(self, values: keras.KerasTensor) -> list[keras.KerasTensor]:
        """Return the parts, (batch, *shape) each."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1].tolist()
        parts = keras.ops.split(values, ends, axis=1)
        return [keras.layers.Reshape(shape)(part) for shape, part in zip(self.shapes, parts, strict=True)]


def activations_of(backbone: Backbone, params: ConvHead) -> Activations:
    """Return the frozen networks that end in what the head reads.

    Raises `CracksError` for a layer that the backbone lacks, or an image size at which the maps do not fit each other.
    """
    network = build_backbone(backbone.architecture, backbone.feature_layers)
    names = [layer.name for layer in network.layers]
    if unknown := [name for name in params.map_layers if name not in names]:
        raise CracksError(
            f"The backbone {network.name} has no layer {', '.join(unknown)}, which map_layers names. "
            f"Those at the end of a block are {', '.join(name for name in names if name.endswith('_add'))}."
        )
    maps = [network.get_layer(name).output for name in params.map_layers]
    size = (None, backbone.image_size_px, backbone.image_size_px, 3)
    shapes = tuple(shape[1:] for shape in keras.Model(network.input, maps).compute_output_shape(size))
    sides = [shape[0] for shape in shapes]
    if any(side % sides[1] and sides[1] % side for side in sides):
        raise CracksError(
            f"At image_size_px {backbone.image_size_px}, the feature maps of map_layers have {sides} positions a side, "
            "which are no multiples of each other. Choose a multiple of 32."
        )
    flat = [keras.layers.Flatten()(part) for part in (*maps, network.output)]
    backbone_values = keras.Model(network.input, keras.layers.Concatenate()(flat), name=network.name)
    image = image_input()
    values = backbone_values(preprocessed(image, backbone.image_size_px), training=False)
    shapes += (network.output.shape[1:],)
    if params.tracer_size_px:
        likelihood = crack_likelihood(image, params.tracer_size_px)
        values, shapes = keras.layers.Concatenate()([likelihood, values]), ((1,), *shapes)
    return Activations(keras.Model(image, values), shapes)


def crack_likelihood(image: keras.KerasTensor, side_px: int) -> keras.KerasTensor:
    """Return how likely an image has a crack for the tracer, (batch, 1): the mean of its likeliest pixels, 0..1.

    They are as many as a line across half of the image has. `image` is uint8 RGB, (batch, height, width, 3); the
    tracer sees it in grey, (side_px, side_px).
    """
    grey = keras.ops.mean(keras.ops.cast(image, "float32"), axis=-1, keepdims=True)
    # Resizing takes four values of a larger image for each: so more of them are averaged.
    grey = keras.layers.Resizing(2 * side_px, 2 * side_px, interpolation="bilinear")(grey)
    logits = trained_network(TRACER_FILE, side_px)(keras.layers.AveragePooling2D(2)(grey), training=False)
    likeliest, _ = keras.ops.top_k(keras.layers.Flatten()(logits), side_px // 2)
    return keras.ops.mean(keras.ops.sigmoid(likeliest), axis=1, keepdims=True)


def build_conv_head(activations: Activations, params: ConvHead) -> keras.Model:
    """Return the untrained head: float32 (batch, n_values) -> the logits of the branches, (batch, n_branches)."""
    values = keras.Input((activations.n_values,), name="activations")
    *maps, features = activations.split(values)
    logits = [keras.layers.Dense(1)(_standardised(maps.pop(0)))] if params.tracer_size_px else []
    logits += [_logit_of_maps(maps, params), _logit_of_features(features, params)]
    return keras.Model(values, keras.layers.Concatenate(name="logits")(logits), name=HEAD)


def conv_head_classifier(activations: Activations, head: keras.Model) -> keras.Model:
    """Return the uncalibrated graph: uint8 RGB (batch, height, width, 3) -> {"logit": (batch, 1), "features"}."""
    values = activations.network.output
    logit = keras.ops.mean(head(values, training=False), axis=1, keepdims=True)
    features = keras.ops.split(values, [activations.n_values - activations.n_features], axis=1)[1]
    return keras.Model(activations.network.input, {"logit": logit, "features": features}, name="classifier")


def stored_weights(head: keras.Model) -> list[npt.NDArray[np.floating[Any]]]:
    """Return the weights of a head as a file has them: kernels float16, which halves its size, and the rest float32."""
    return [weight.astype(np.float16) if weight.ndim > 1 else weight for weight in head.get_weights()]


def _logit_of_maps(maps: Sequence[keras.KerasTensor], params: ConvHead) -> keras.KerasTensor:
    """Return the logit of feature maps, which are all brought to the size of the second."""
    layers, height = keras.layers, maps[1].shape[1]
    resized = []
    for map_ in maps:
        x = _standardised(map_)
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


def _standardised(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.BatchNormalization(center=False, scale=False)(x)


def _normalised(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))


def _logit_of_features(features: keras.KerasTensor, params: ConvHead) -> keras.KerasTensor:
    layers = keras.layers
    x = layers.Dense(params.n_hidden, activation="relu")(
        layers.Dropout(params.feature_dropout)(_standardised(features))
    )
    return layers.Dense(1)(layers.Dropout(params.feature_dropout)(x))
