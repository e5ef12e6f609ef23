"""The layers of a Keras model, as JSON-serialisable rows of a table."""

from collections.abc import Sequence
from typing import TypedDict

from pipeline.models.tf import keras


class Layer(TypedDict):
    """A layer of a model."""

    name: str
    type: str  # its class in Keras
    shape: Sequence[int | None]  # of its output, without the batch; None for any size
    n_weights: int
    layers: "list[Layer]"  # of a nested model


def describe_layers(model: keras.Model) -> list[Layer]:
    """Return the layers of a functional Keras model, in its order; a nested model follows on what feeds it."""
    layers: list[Layer] = []
    for layer in model.layers:
        nested: list[Layer] = []
        if isinstance(layer, keras.Model):
            # in a copy for the size of its input here, if the original accepts any
            shape = layer.input_shape[1:] if None not in layer.input_shape[1:] else layers[-1]["shape"]
            sized_input = keras.tree.map_structure(lambda _, shape=shape: keras.Input(shape), layer.input)
            nested = describe_layers(keras.models.clone_model(layer, input_tensors=sized_input))
        kind, shape = type(layer).__name__, layer.output.shape[1:]
        layers.append(Layer(name=layer.name, type=kind, shape=shape, n_weights=layer.count_params(), layers=nested))
    return layers
