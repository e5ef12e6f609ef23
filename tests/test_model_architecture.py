import json

import pytest

from pipeline.evaluation.model_architecture import blocks
from pipeline.models.calibration import Calibration, Platt
from pipeline.models.export import calibrated
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


def test_a_nested_model_is_split_where_its_output_size_changes(model):
    found = {block["title"]: (block["shape"], block["n_weights"]) for block in blocks(model)}
    assert found == {
        "image": ((None, None, 3), 0),
        "resize": ((32, 32, 3), 0),
        "normalise": ((32, 32, 3), 0),
        "tiny, stage 1": ((16, 16, 4), 3 * 3 * 3 * 4 + 4),
        "tiny, stage 2": ((8, 8, 8), 3 * 3 * 4 * 8 + 8 + 8 * 8 + 8),
        "tiny, end": ((8,), 0),
        "hidden": ((5,), 8 * 5 + 5),
        "head": ((1,), 5 + 1),
        "calibration": ((1,), 2),
        "probability": ((1,), 0),
    }


def test_no_weight_is_lost_or_counted_twice(model):
    assert sum(block["n_weights"] for block in blocks(model)) == model.count_params()


def test_stages_name_their_layers(model):
    (stage,) = [block for block in blocks(model) if block["title"] == "tiny, stage 2"]
    assert stage["detail"] == "4 layers, pad … add"


def test_a_sequential_model_can_be_nested_too():
    image = keras.Input((16, 16, 3))
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(2)], name="flat")
    assert [(block["title"], block["shape"]) for block in blocks(keras.Model(image, inner(image)))][1:] == [
        ("flat, stage 1", (2,))
    ]


def test_features_from_several_depths_do_not_fragment_the_stages():
    whole = network()
    depths = [layers.GlobalAveragePooling2D()(whole.get_layer(name).output) for name in ("first", "add")]
    tapped = keras.Model(whole.inputs, layers.Concatenate(name="features")(depths), name="tapped")
    image = keras.Input((32, 32, 3))
    found = [(block["title"], block["shape"]) for block in blocks(keras.Model(image, tapped(image)))]
    assert found[1:] == [("tapped, stage 1", (16, 16, 4)), ("tapped, stage 2", (8, 8, 8)), ("tapped, end", (12,))]


def test_finding_the_blocks_does_not_change_the_model(model):
    before = [value.tolist() for value in model.get_weights()]
    blocks(model)
    assert [value.tolist() for value in model.get_weights()] == before


def test_blocks_survive_a_round_trip_through_json(model):
    found = blocks(model)
    assert json.loads(json.dumps(found)) == [block | {"shape": list(block["shape"])} for block in found]
