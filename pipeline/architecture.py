"""A picture of a Keras model, drawn from its graph: layers from top to bottom, nested models stage by stage."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2

from markupsafe import Markup

from pipeline.tf import keras

Shape = tuple[int | None, ...]  # without the batch

WIDTH, ROW_HEIGHT = 500, 58  # units of the drawing, about pixels
CENTRE, TEXT_FROM, MAX_BLOCK = 65, 145, 120


@dataclass(frozen=True)
class Block:
    """A layer, or consecutive layers of a nested model whose outputs have one height and width.

    Attributes:
        title: name of the layer, or of the nested model and the number of the stage.
        detail: what it is.
        shape: of the output of the last layer, without the batch; None where any size goes.
        n_weights: numbers in all its weights.
        is_nested: whether it is a part of a nested model.

    """

    title: str
    detail: str
    shape: Shape
    n_weights: int
    is_nested: bool = False


def _feeder(model: keras.Model, nested: keras.Model) -> str:
    """Return the name of the layer of the functional `model` whose output goes into `nested`."""
    (settings,) = [entry for entry in model.get_config()["layers"] if entry["config"]["name"] == nested.name]
    return str(settings["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0])


def _stages(network: keras.Model, input_shape: Shape) -> Iterator[Block]:
    """Yield consecutive layers with one output height and width as a block; padding goes with what follows it."""
    # the original takes any size, and its input can be a tensor or a list of one
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
            yield Block(f"{network.name}, stage {number}", _names(stage), previous, n_weights, True)
            stage, n_weights = [], 0
        stage.append(layer)
        n_weights, previous = n_weights + layer.count_params(), shape
    if previous is not None:
        title = f"{network.name}, stage {number + 1}" if n_weights else f"{network.name}, end"
        yield Block(title, _names(stage), previous, n_weights, True)


def _names(layers: list[keras.Layer]) -> str:
    if len(layers) == 1:
        return f"{layers[0].name} ({type(layers[0]).__name__})"
    return f"{len(layers)} layers, {layers[0].name} … {layers[-1].name}"


def blocks(model: keras.Model) -> list[Block]:
    """Return what a functional Keras model does to an input, in the order of its layers.

    A nested model with one input is cut into its stages; what is nested deeper counts as a layer.
    """
    shapes = {layer.name: tuple(layer.output.shape[1:]) for layer in model.layers}
    result: list[Block] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model) and len(layer.inputs) == 1:
            result += _stages(layer, shapes[_feeder(model, layer)])
        else:
            result.append(Block(layer.name, type(layer).__name__, shapes[layer.name], layer.count_params()))
    return [replace(block, shape=block.shape or (1,)) for block in result]


def _numbers(block: Block) -> str:
    shape = " x ".join("any" if size is None else str(size) for size in block.shape)
    return f"{shape}; {block.n_weights:,} weights" if block.n_weights else shape


def _drawn(block: Block, row: int, largest: int) -> Markup:
    """Return a block: the wider, the larger its images; the higher, the more channels."""
    size = max((side or largest for side in block.shape[:-1]), default=0)
    width = max(14.0, MAX_BLOCK * log2(1 + size) / log2(1 + largest))
    height = 4 + 4 * log2(block.shape[-1] or 1)
    top, middle = row * ROW_HEIGHT, row * ROW_HEIGHT + ROW_HEIGHT / 2
    colour = f"var(--series-{0 if block.is_nested else 1})" if block.n_weights else "var(--line)"
    arrow = Markup('<path d="M{0} {1}v{2}" stroke="var(--muted)"/>').format(CENTRE, top - 8, 12) if row else ""
    return Markup(
        '{}<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="4" fill="{}"/>'
        '<text x="{}" y="{:.0f}" font-size="13" font-weight="600" fill="var(--text)">{}'
        '<tspan x="{}" dy="16" font-weight="400" fill="var(--text)">{}</tspan>'
        '<tspan x="{}" dy="14" font-size="11" font-weight="400" fill="var(--muted)">{}</tspan></text>'
    ).format(
        arrow, CENTRE - width / 2, middle - height / 2, width, height, colour,
        TEXT_FROM, top + 18, block.title, TEXT_FROM, _numbers(block), TEXT_FROM, block.detail,
    )  # fmt: skip


def draw(model: keras.Model) -> Markup:
    """Return the picture of a functional Keras model as inline SVG in the colours of the page."""
    drawn = blocks(model)
    largest = max((side or 1 for block in drawn for side in block.shape[:-1]), default=1)
    rows = Markup("").join(_drawn(block, row, max(2, largest)) for row, block in enumerate(drawn))
    return Markup('<svg viewBox="0 0 {} {}">{}</svg>').format(WIDTH, len(drawn) * ROW_HEIGHT, rows)
