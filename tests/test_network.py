import numpy as np
import pytest
from pictures import Pictures

from pipeline.models.backbones import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.network import (
    BATCH_IMAGES,
    as_tf_function,
    build_classifier,
    build_embedder,
    image_input,
    logits_and_features,
    preprocessed,
    run_in_batches,
)
from pipeline.models.tf import keras
from pipeline.params import Backbone

SIZE_PX = 32
SLOPE, INTERCEPT = 1.5, -0.7


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def preprocess(batch):
    image = image_input()
    return np.array(keras.Model(image, preprocessed(image, SIZE_PX))(batch))


def normalised(batch):
    return (batch / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)


@pytest.fixture(scope="module")
def uncalibrated():
    """A classifier whose features are the means of red, green and blue."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    return build_classifier(network, SIZE_PX, [keras.layers.Dropout(0.5), keras.layers.Dense(1, name="head")])


@pytest.fixture(scope="module")
def exported(uncalibrated):
    return calibrated(uncalibrated, Calibration((Platt(SLOPE, INTERCEPT),)))


@pytest.fixture(scope="module")
def embedder():
    return build_embedder(Backbone(architecture="mobilenet-v2", image_size_px=SIZE_PX))


def test_an_image_of_the_right_size_is_only_normalised():
    batch = noise(2, SIZE_PX, SIZE_PX)
    np.testing.assert_allclose(preprocess(batch), normalised(batch), atol=1e-5)


def test_an_image_twice_as_large_is_averaged_over_four_pixels():
    batch = noise(1, 2 * SIZE_PX, 2 * SIZE_PX)
    expected = normalised(batch).reshape(1, SIZE_PX, 2, SIZE_PX, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(preprocess(batch), expected, atol=1e-5)


def test_the_exported_graph_equals_a_computation_by_hand(uncalibrated, exported):
    batch = noise(3, SIZE_PX, SIZE_PX)
    kernel, bias = uncalibrated.get_layer("head").get_weights()
    features = normalised(batch).mean(axis=(1, 2))
    logits = (features @ kernel + bias)[:, 0]
    outputs = exported(batch)
    np.testing.assert_allclose(outputs["features"], features, atol=1e-5)
    np.testing.assert_allclose(outputs["probability"], 1 / (1 + np.exp(-(SLOPE * logits + INTERCEPT))), atol=1e-5)


def test_the_probability_is_the_calibrated_logit(uncalibrated, exported):
    batch = noise(8, 40, 50)
    logits = np.array(uncalibrated(batch)["logit"])[:, 0].astype(np.float64)
    expected = 1 / (1 + np.exp(-(SLOPE * logits + INTERCEPT)))
    np.testing.assert_allclose(exported(batch)["probability"], expected, atol=1e-6)


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 1), (32, 32), (33, 47), (5, 300)])
def test_the_exported_graph_takes_any_size(exported, height_px, width_px):
    outputs = exported(noise(2, height_px, width_px))
    assert {name: (output.shape, output.dtype) for name, output in outputs.items()} == {
        "probability": ((2,), "float32"),
        "features": ((2, 3), "float32"),
    }


def test_the_exported_graph_declares_its_input(exported):
    assert (exported.input.shape, exported.input.dtype) == ((None, None, None, 3), "uint8")


def test_dropout_in_the_head_is_inactive_in_inference(exported):
    batch = noise(4, SIZE_PX, SIZE_PX)
    np.testing.assert_array_equal(exported(batch)["probability"], exported(batch)["probability"])


def test_images_of_mixed_sizes_are_returned_in_order(exported):
    sizes = [(20, 30), (30, 20), (20, 30), (64, 64), (30, 20), (20, 30)]
    pictures = [noise(*size, seed=seed) for seed, size in enumerate(sizes)]
    probabilities = np.full(len(pictures), np.nan)
    batches = []
    for positions, outputs in run_in_batches(exported, Pictures(pictures), progress="scoring"):
        probabilities[positions] = outputs["probability"]
        batches.append(sorted(positions.tolist()))
    alone = [exported(picture[None])["probability"][0] for picture in pictures]
    np.testing.assert_allclose(probabilities, alone, atol=1e-6)
    assert sorted(batches) == [[0, 2, 5], [1, 4], [3]]


def test_many_images_of_one_size_are_split_into_batches(exported):
    pictures = Pictures([noise(8, 8)] * (BATCH_IMAGES + 1))
    lengths = [len(positions) for positions, _ in run_in_batches(exported, pictures, progress="scoring")]
    assert lengths == [BATCH_IMAGES, 1]


def test_no_images_give_no_batches(exported):
    nothing = Pictures([])
    nothing.sizes = np.empty((0, 2), np.int64)
    assert list(run_in_batches(exported, nothing, progress="scoring")) == []


def test_the_embedder_returns_the_features_of_the_backbone(embedder):
    batch = noise(2, SIZE_PX, SIZE_PX)
    expected = build_backbone("mobilenet-v2")(normalised(batch).astype(np.float32))
    np.testing.assert_allclose(embedder(batch)["features"], expected, atol=1e-4)


def test_the_features_of_an_image_do_not_depend_on_its_batch(embedder):
    batch = noise(5, 48, 40)
    alone = np.concatenate([embedder(batch[n : n + 1])["features"] for n in range(len(batch))])
    np.testing.assert_allclose(embedder(batch)["features"], alone, atol=1e-4)


def test_a_saved_graph_loads_safely_and_gives_the_same_answers(tmp_path):
    keras.utils.set_random_seed(0)
    classifier = build_classifier(build_backbone("mobilenet-v2"), SIZE_PX, [keras.layers.Dense(1, name="head")])
    exported = calibrated(classifier, Calibration((Platt(SLOPE, INTERCEPT),)))
    exported.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    batch = noise(2, 50, 40)
    for name, output in exported(batch).items():
        np.testing.assert_array_equal(loaded(batch)[name], output)


def test_logits_and_features_are_in_the_order_of_the_images_for_mixed_sizes(uncalibrated):
    pictures = [noise(*size, seed=seed) for seed, size in enumerate([(20, 30), (30, 20), (20, 30)])]
    logits, features = logits_and_features(uncalibrated, Pictures(pictures), progress="validating")
    alone = [uncalibrated(picture[None]) for picture in pictures]
    np.testing.assert_allclose(logits, [outputs["logit"][0, 0] for outputs in alone], atol=1e-6)
    np.testing.assert_allclose(features, [outputs["features"][0] for outputs in alone], atol=1e-3)
    assert features.dtype == np.float16


def test_a_compiled_graph_gives_the_same_probabilities_for_any_size():
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), -1.0), np.zeros(1)])
    model = calibrated(classifier, Calibration((Platt(1.0, 0.0),)))
    compute = as_tf_function(model)
    for size in (8, 20):
        batch = noise(3, size, size)
        np.testing.assert_allclose(compute(batch)["probability"], model(batch)["probability"], atol=1e-6)
