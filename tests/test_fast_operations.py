"""Tests of the replacement of slow operations: equal results, and nothing else is replaced."""

import numpy as np
import openvino
import pytest
from openvino import opset15 as ops

from pipeline.inference.fast_operations import MAX_CHANNELS, with_fast_operations
from pipeline.inference.openvino_cpu import CompiledGraph, supported_precision
from pipeline.models.network import image_input, to_openvino
from pipeline.models.tf import keras

IMAGES = {
    (height, width): np.random.default_rng(height).integers(0, 256, (2, height, width, 3), np.uint8)
    for height, width in ((256, 256), (50, 227), (300, 31), (1, 40))
}


def model_of(*layers):
    image = image_input()
    x = keras.ops.cast(image, "float32")
    for layer in layers:
        x = layer(x)
    return keras.Model(image, {"result": x})


def kinds(graph):
    return [operation.get_type_name() for operation in graph.get_ops()]


def largest_difference(model):
    compute = CompiledGraph(to_openvino(model))
    return max(np.abs(compute(images)["result"] - model(images)["result"]).max() for images in IMAGES.values())


@pytest.mark.parametrize(("height", "width"), [(224, 224), (64, 320), (600, 17), (1, 1)])
def test_images_of_any_size_are_resized_as_keras_resizes_them(height, width):
    model = model_of(keras.layers.Resizing(height, width))
    assert kinds(to_openvino(model)).count("Interpolate") == 1
    assert "Interpolate" not in kinds(with_fast_operations(to_openvino(model)))
    assert largest_difference(model) < 0.02  # grey levels: positions between pixels are rounded


def test_features_of_many_channels_and_nearest_pixels_are_resized_by_openvino():
    many = keras.layers.Lambda(lambda x: keras.ops.repeat(x, MAX_CHANNELS, axis=-1))
    for model in (model_of(many, keras.layers.Resizing(64, 64)), model_of(keras.layers.Resizing(64, 64, "nearest"))):
        assert kinds(with_fast_operations(to_openvino(model))).count("Interpolate") == 1


def test_images_whose_channels_come_first_are_resized_by_openvino():
    images = ops.parameter([-1, 3, -1, 4], np.float32)
    size, axes = np.array([20, 20]), np.array([2, 3])
    resized = ops.interpolate(images, size, "linear_onnx", "sizes", axes=axes)
    assert "Interpolate" in kinds(with_fast_operations(openvino.Model([resized], [images])))


@pytest.mark.parametrize("window_px", [15, (4, 7)])
def test_the_averages_around_each_pixel_are_those_of_keras_at_edges_too(window_px):
    model = model_of(keras.layers.AveragePooling2D(window_px, 1, padding="same"))
    graph = with_fast_operations(to_openvino(model))
    kernels = [node.get_attributes()["kernel"] for node in graph.get_ordered_ops() if node.get_type_name() == "AvgPool"]
    height, width = (window_px, window_px) if isinstance(window_px, int) else window_px
    assert kernels == [[height, 1], [1, width]]
    assert largest_difference(model) < 1e-3


def test_averages_over_windows_beside_each_other_are_left_alone():
    model = model_of(keras.layers.AveragePooling2D(4, 4, padding="same"))
    assert kinds(with_fast_operations(to_openvino(model))).count("AvgPool") == 1
    assert largest_difference(model) < 1e-3


def test_the_largest_values_are_found_without_keeping_the_order_of_equal_ones():
    flat = keras.layers.Flatten()
    model = model_of(keras.layers.Resizing(8, 8), flat, keras.layers.Lambda(lambda x: keras.ops.top_k(x, 5)[0]))
    given = to_openvino(model)
    for graph, is_stable in ((with_fast_operations(given), False), (given, True)):  # the given graph does not change
        stable = [node.get_attributes()["stable"] for node in graph.get_ops() if node.get_type_name() == "TopK"]
        assert stable == [is_stable]
    assert largest_difference(model) < 0.02


@pytest.mark.skipif(supported_precision("bf16") != "bf16", reason="a CPU without bfloat16")
def test_in_bfloat16_images_are_resized_by_openvino_because_positions_of_pixels_would_be_rounded():
    mean = keras.layers.Conv2D(1, 1, use_bias=False, kernel_initializer=keras.initializers.Constant(1 / 3))
    model = model_of(keras.layers.Resizing(300, 300), mean)
    image = np.random.default_rng(0).integers(0, 256, (1, 400, 400, 3), np.uint8)
    difference = np.abs(CompiledGraph(to_openvino(model), "bf16")(image)["result"] - model(image)["result"]).max()
    assert difference < 3  # of 255 grey levels: bfloat16 has eight binary digits
