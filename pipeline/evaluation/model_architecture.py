"""The layers of a Keras model from input to output, nested models split into stages, as JSON-serialisable blocks."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

from pipeline.models.tf import keras

Shape = Sequence[int | None]  # without the batch


class Block(TypedDict):
    """A layer, or consecutive layers of a nested model whose outputs have the same height and width.

    Attributes:
        title: name of the layer, or of the nested model and the number of the stage.
        detail: type of the layer, or names of the first and the last layer.
        shape: shape of the last layer's output, without the batch; None for any size.
        n_weights: number of weights.
        is_nested: whether it is part of a nested model.

    """

    title: str
    detail: str
    shape: Shape
    n_weights: int
    is_nested: bool


def _feeding_layer(model: keras.Model, nested: keras.Model) -> str:
    """Return the name of the layer of the functional `model` whose output is the input of `nested`."""
    (settings,) = [entry for entry in model.get_config()["layers"] if entry["config"]["name"] == nested.name]
    return str(settings["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0])


def _stages(network: keras.Model, input_shape: Shape) -> Iterator[Block]:
    """Yield a block for consecutive layers with the same output height and width; padding joins the next block."""
    # the original accepts any size, and its input can be a tensor or a list of one
    sized_input = keras.tree.map_structure(lambda _: keras.Input(input_shape), network.input)
    sized = keras.models.clone_model(network, input_tensors=sized_input)
    stage: list[keras.Layer] = []
    n_weights, number, previous = 0, 0, None
    for layer in sized.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        shape = layer.output.shape[1:]
        if previous is not None and shape[:-1] != previous[:-1] and n_weights:
            number += 1
            yield _block(f"{network.name}, stage {number}", _names(stage), previous, n_weights, is_nested=True)
            stage, n_weights = [], 0
        stage.append(layer)
        n_weights, previous = n_weights + layer.count_params(), shape
    if previous is not None:
        title = f"{network.name}, stage {number + 1}" if n_weights else f"{network.name}, end"
        yield _block(title, _names(stage), previous, n_weights, is_nested=True)


def _block(title: str, detail: str, shape: Shape, n_weights: int, *, is_nested: bool) -> Block:
    return Block(title=title, detail=detail, shape=shape or (1,), n_weights=n_weights, is_nested=is_nested)


def _names(layers: list[keras.Layer]) -> str:
    if len(layers) == 1:
        return f"{layers[0].name} ({type(layers[0]).__name__})"
    return f"{len(layers)} layers, {layers[0].name} … {layers[-1].name}"


def blocks(model: keras.Model) -> list[Block]:
    """Return the blocks of a functional Keras model, in the order of its layers.

    A nested model with one input is split into stages; models nested deeper count as layers.
    """
    shapes = {layer.name: tuple(layer.output.shape[1:]) for layer in model.layers}
    result: list[Block] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model) and len(layer.inputs) == 1:
            result += _stages(layer, shapes[_feeding_layer(model, layer)])
        else:
            detail, n_weights = type(layer).__name__, layer.count_params()
            result.append(_block(layer.name, detail, shapes[layer.name], n_weights, is_nested=False))
    return result
