import json

import pytest

from pipeline.evaluation.model_architecture import describe_layers
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras

layers = keras.layers


def network(name="tiny"):
    """Two stages, the second padded first, with a shortcut, then pooling."""
    image = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(4, 3, 2, "same", name="first")(image)
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.Conv2D(8, 3, 2, name="second")(x)
    y = layers.Conv2D(8, 1, name="branch")(x)
    x = layers.Add(name="add")([x, y])
    return keras.Model(image, layers.GlobalAveragePooling2D(name="pool")(x), name=name)


@pytest.fixture(scope="module")
def model():
    head = [layers.Dense(5, activation="relu", name="hidden"), layers.Dense(1, name="head")]
    return calibrated(build_classifier(network(), 32, head), Calibration((Platt(1.0, 0.0),)))


def rows(layers):
    return [(layer["name"], layer["type"], layer["shape"], layer["n_weights"]) for layer in layers]


def test_each_layer_has_its_type_its_shape_and_its_weights(model):
    n_convolutions = 3 * 3 * 3 * 4 + 4 + 3 * 3 * 4 * 8 + 8 + 8 * 8 + 8
    assert rows(describe_layers(model)) == [
        ("image", "InputLayer", (None, None, 3), 0),
        ("resize", "Resizing", (32, 32, 3), 0),
        ("normalise", "Rescaling", (32, 32, 3), 0),
        ("tiny", "Functional", (8,), n_convolutions),
        ("hidden", "Dense", (5,), 8 * 5 + 5),
        ("head", "Dense", (1,), 5 + 1),
        ("calibration", "Dense", (1,), 2),
        ("probability", "Reshape", (), 0),
    ]
    assert sum(layer["n_weights"] for layer in describe_layers(model)) == model.count_params()


def test_the_layers_of_a_nested_model_have_the_shapes_that_they_have_in_it(model):
    (nested,) = [layer["layers"] for layer in describe_layers(model) if layer["layers"]]
    assert rows(nested)[1:] == [
        ("first", "Conv2D", (16, 16, 4), 3 * 3 * 3 * 4 + 4),
        ("pad", "ZeroPadding2D", (18, 18, 4), 0),
        ("second", "Conv2D", (8, 8, 8), 3 * 3 * 4 * 8 + 8),
        ("branch", "Conv2D", (8, 8, 8), 8 * 8 + 8),
        ("add", "Add", (8, 8, 8), 0),
        ("pool", "GlobalAveragePooling2D", (8,), 0),
    ]


def test_describing_the_layers_does_not_change_the_model(model):
    before = [value.tolist() for value in model.get_weights()]
    describe_layers(model)
    assert [value.tolist() for value in model.get_weights()] == before


def test_layers_can_be_written_as_json(model):
    assert json.loads(json.dumps(describe_layers(model)))[0]["name"] == "image"
