"""Repositions operations that OpenVINO computes slowly on a CPU by faster ones, with equal results but for rounding.

This is done when a graph is compiled, not when it is written, so that models registered before gain from it, too.
"""

import numpy as np
import openvino
from openvino import Node
from openvino import opset15 as ops

MAX_CHANNELS = 8  # of images; OpenVINO resizes 16 channels in the time of one, so with more it is fast enough
FIRST_AXIS = np.int64(0)


def with_fast_operations(graph: openvino.Model) -> openvino.Model:
    """Return a copy of a graph that resizes images, averages over windows and finds the largest values faster."""
    graph = graph.clone()
    for operation in graph.get_ordered_ops():
        match operation.get_type_name():
            case "Interpolate" if _resizes_images(operation):
                _replace(operation, _resized(operation))
            case "AvgPool" if _is_moving_average(operation):
                _replace(operation, _averaged(operation))
            case "TopK":  # to keep the order of equal values takes as long as a network
                operation.set_attribute("stable", False)
    return graph


def _replace(operation: Node, faster: Node) -> None:
    faster.set_friendly_name(operation.get_friendly_name())
    for user in operation.output(0).get_target_inputs():
        user.replace_source_output(faster.output(0))


def _resizes_images(interpolate: Node) -> bool:
    """Return whether an operation resizes (n, height, width, channels) bilinearly to a height and a width."""
    attributes, channels = interpolate.get_attributes(), interpolate.input(0).get_partial_shape()[3]
    how = [attributes[name] for name in ("mode", "shape_calculation_mode", "coordinate_transformation_mode")]
    axes = interpolate.input_value(interpolate.get_input_size() - 1).get_node()
    is_bilinear = how == ["linear_onnx", "sizes", "half_pixel"] and axes.get_data().tolist() == [1, 2]
    return is_bilinear and channels.is_static and channels.get_length() <= MAX_CHANNELS


def _resized(interpolate: Node) -> Node:
    """Return the images resized along one axis, then along the other."""
    images, sizes = (interpolate.input_value(number) for number in (0, 1))
    height, width = (ops.gather(sizes, np.int64(number), FIRST_AXIS) for number in (0, 1))
    columns = ops.transpose(_with_n_rows(images, height), np.array([0, 2, 3, 1]))  # (n, width, channels, height)
    return ops.transpose(_with_n_rows(columns, width), np.array([0, 3, 1, 2]))


def _with_n_rows(images: Node, n_rows: Node) -> Node:
    """Return images, (n, rows, …), with another number of rows, each interpolated linearly between two."""
    shape, wanted = ops.shape_of(images), ops.convert(n_rows, "f32")
    given = ops.convert(ops.gather(shape, np.int64(1), FIRST_AXIS), "f32")
    centres = ops.add(ops.range(np.float32(0), wanted, np.float32(1), "f32"), np.float32(0.5))
    positions = ops.subtract(ops.multiply(centres, ops.divide(given, wanted)), np.float32(0.5))
    last = ops.subtract(given, np.float32(1))
    positions = ops.minimum(ops.maximum(positions, np.float32(0)), last)
    above = ops.floor(positions)
    below = ops.minimum(ops.add(above, np.float32(1)), last)
    rows = ops.reshape(images, np.array([0, 0, -1]), special_zero=True)
    first, second = (ops.gather(rows, ops.convert(number, "i32"), np.int64(1)) for number in (above, below))
    weight = ops.unsqueeze(ops.subtract(positions, above), np.int64(1))
    interpolated = ops.add(first, ops.multiply(ops.subtract(second, first), weight))
    row_shape = ops.gather(shape, np.array([2, 3]), FIRST_AXIS)
    return ops.reshape(interpolated, ops.concat([np.array([0, -1]), row_shape], axis=0), special_zero=True)


def _is_moving_average(pool: Node) -> bool:
    """Return whether an operation averages over a window around each position, of positions inside the image only."""
    attributes = pool.get_attributes()
    return (attributes["auto_pad"], attributes["strides"], attributes["exclude-pad"]) == ("same_upper", [1, 1], True)


def _averaged(pool: Node) -> Node:
    """Return the means over windows as means along rows of means along columns."""
    averaged = pool.input_value(0)
    height, width = pool.get_attributes()["kernel"]
    for kernel in ([height, 1], [1, width]):
        averaged = ops.avg_pool(averaged, [1, 1], [0, 0], [0, 0], kernel, exclude_pad=True, auto_pad="same_upper")
    return averaged
