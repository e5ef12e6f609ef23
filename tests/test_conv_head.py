from types import SimpleNamespace

import numpy as np
import openvino
import pytest
from interrupted_training import KilledError, Tiles, ignore
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from tiny_conv_head import BACKBONE, CONV_HEAD

from pipeline.errors import CracksError
from pipeline.evaluation.model_architecture import describe_layers
from pipeline.inference.openvino_cpu import CompiledGraph
from pipeline.models.backbones import build_backbone
from pipeline.models.conv_head import (
    HEAD,
    activations_of,
    build_conv_head,
    conv_head_classifier,
    crack_likelihood,
    stored_weights,
)
from pipeline.models.model_files import TRACER_FILE
from pipeline.models.network import build_embedder, image_input, preprocessed
from pipeline.models.tf import keras
from pipeline.models.tracer_network import trained_network
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.conv_head_fitting import fit_conv_head


def test_a_layer_that_the_backbone_lacks_is_refused_with_those_that_end_a_block():
    with pytest.raises(CracksError, match=r"mobilenet-v2 has no layer block_99_add, which map_layers.* block_2_add, "):
        activations_of(BACKBONE, CONV_HEAD.model_copy(update={"map_layers": ("block_2_add", "block_99_add")}))


def test_an_image_size_whose_maps_do_not_fit_each_other_is_refused():
    backbone = BACKBONE.model_copy(update={"image_size_px": 72})
    with pytest.raises(CracksError, match=r"At image_size_px 72.* \[18, 9, 5\] positions a side.*a multiple of 32"):
        activations_of(backbone, CONV_HEAD)


def test_the_parts_of_the_activations_are_the_maps_and_the_features():
    activations = activations_of(BACKBONE, CONV_HEAD)
    assert activations.shapes == ((1,), (16, 16, 24), (8, 8, 32), (4, 4, 64), (1280,))
    image = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), np.uint8)
    likelihood, *maps, features = activations.split(activations.network(image))
    assert likelihood.shape == (2, 1)
    np.testing.assert_allclose(features, build_embedder(BACKBONE)(image)["features"], atol=1e-5)
    network = build_backbone("mobilenet-v2", BACKBONE.feature_layers)
    lowest = keras.Model(network.input, network.get_layer("block_2_add").output)
    scaled = keras.Model(any_size := image_input(), preprocessed(any_size, BACKBONE.image_size_px))
    np.testing.assert_allclose(maps[0], lowest(scaled(image)), atol=1e-5)


def test_without_the_tracer_there_are_only_the_maps_and_the_features():
    params = CONV_HEAD.model_copy(update={"tracer_size_px": None})
    activations = activations_of(BACKBONE, params)
    assert activations.shapes == ((16, 16, 24), (8, 8, 32), (4, 4, 64), (1280,))
    assert build_conv_head(activations, params).output.shape == (None, 2)


def test_the_tracer_finds_a_drawn_line_likelier_than_concrete_without_one():
    image = image_input()
    likelihood = keras.Model(image, crack_likelihood(image, 64))
    concrete = np.random.default_rng(0).normal(150, 3, (2, 128, 128, 1)).clip(0, 255).repeat(3, axis=3)
    for x in range(128):
        concrete[1, round(60 + 8 * np.sin(x / 9)), x] -= 80
        concrete[1, round(61 + 8 * np.sin(x / 9)), x] -= 80
    intact, cracked = np.asarray(likelihood(concrete.astype(np.uint8)))[:, 0]
    assert 0 <= intact < 0.2 < 0.8 < cracked <= 1


def test_the_network_of_the_tracer_computes_what_its_graph_does():
    side_px = 64
    image = np.random.default_rng(0).integers(90, 160, (1, side_px, side_px, 3), np.uint8)
    image[:, :, 30:33] = 40
    logits = trained_network(TRACER_FILE, side_px)(image.astype(np.float32).mean(axis=-1, keepdims=True))
    by_pixel = np.asarray(logits).reshape(side_px // 2, side_px // 2, 2, 2).swapaxes(1, 2).reshape(side_px, side_px)
    likelihood = CompiledGraph(openvino.Core().read_model(TRACER_FILE))(image)["likelihood"][0, :, :, 0]
    np.testing.assert_allclose(expit(by_pixel), likelihood, atol=1e-3)


def test_the_logit_of_a_classifier_is_the_mean_of_its_branches_for_images_of_any_size():
    activations = activations_of(BACKBONE, CONV_HEAD)
    head = build_conv_head(activations, CONV_HEAD)
    classifier = conv_head_classifier(activations, head)
    image = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), np.uint8)
    outputs = classifier(image)
    assert outputs["logit"].shape == (3, 1)
    np.testing.assert_allclose(outputs["features"], build_embedder(BACKBONE)(image)["features"], atol=1e-5)
    kernel, bias = head.layers[-2].get_weights()  # of the branch of the features, which is built last
    head.layers[-2].set_weights([kernel, bias + 1])
    np.testing.assert_allclose(classifier(image)["logit"] - outputs["logit"], 1 / 3, atol=1e-5)


def test_the_layers_of_a_classifier_are_described_with_those_of_its_network_and_its_head():
    activations = activations_of(BACKBONE, CONV_HEAD)
    layers = describe_layers(conv_head_classifier(activations, build_conv_head(activations, CONV_HEAD)))
    (network,), (head,) = ([layer for layer in layers if layer["name"] == name] for name in ("mobilenet-v2", HEAD))
    shapes = {layer["name"]: tuple(layer["shape"]) for layer in network["layers"]}
    assert shapes["block_2_add"] == (16, 16, 24)
    assert head["layers"][0]["shape"] == (activations.n_values,)
    assert head["layers"][-1]["shape"] == (3,)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, draw_tile):
    """A training that is killed at the end of its second epoch, and then resumed."""
    path = tmp_path_factory.mktemp("unfinished") / "history.jsonl"
    train, validation = Tiles(draw_tile, range(32), 64), Tiles(draw_tile, range(50, 66), 64)

    def die_at_the_second(step, values):
        if step == 1:
            raise KilledError("at the second epoch")

    with pytest.raises(KilledError):
        fit_conv_head(BACKBONE, train, validation, CONV_HEAD, path.parent, TrainingHistory(path, die_at_the_second))
    resumed_steps = []
    history = TrainingHistory(path, lambda step, values: resumed_steps.append(step))
    result = fit_conv_head(BACKBONE, train, validation, CONV_HEAD, path.parent, history)
    undisturbed = TrainingHistory(tmp_path_factory.mktemp("undisturbed") / "history.jsonl", ignore)
    return SimpleNamespace(
        classifier=result.classifier,
        logits=result.logits,
        features=result.features,
        membership=result.membership,
        history=history,
        resumed_steps=resumed_steps,
        undisturbed=fit_conv_head(BACKBONE, train, validation, CONV_HEAD, path.parent, undisturbed).classifier,
        validation=validation,
    )


@pytest.mark.slow
def test_a_killed_training_resumes_at_the_unfinished_epoch_with_the_same_result(fitted):
    assert fitted.resumed_steps == [1, 2]
    assert [row["epoch"] for row in fitted.history.rows] == [0, 1, 2]
    for one, other in zip(fitted.classifier.get_weights(), fitted.undisturbed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)  # kernels are rounded to half precision


@pytest.mark.slow
def test_a_head_learns_to_tell_drawn_cracks_from_intact_tiles(fitted):
    pixels = np.stack([fitted.validation.pixels(position) for position in range(16)])
    logits = np.asarray(fitted.classifier(pixels)["logit"])[:, 0]
    assert roc_auc_score(fitted.validation.labels, logits) > 0.9
    np.testing.assert_allclose(fitted.logits, logits, atol=1e-2)  # by activations in half precision


@pytest.mark.slow
def test_similarity_is_learned_from_training_images_and_from_strongly_augmented_validation_images(fitted):
    features, names = fitted.membership
    assert names.tolist() == ["ours"] * 24 + ["theirs"] * 8 + [""] * 16
    pixels = np.stack([fitted.validation.pixels(position) for position in range(16)])
    expected = np.asarray(fitted.classifier(pixels)["features"])
    np.testing.assert_allclose(fitted.features, expected, atol=1e-2)
    assert np.abs(features[32:] - expected).mean() > 0.05


@pytest.mark.slow
def test_the_weights_of_a_trained_head_are_those_that_a_file_keeps(fitted):
    head = fitted.classifier.get_layer(HEAD)
    for kept, weight in zip(stored_weights(head), head.get_weights(), strict=True):
        np.testing.assert_array_equal(kept.astype(np.float32), weight)
