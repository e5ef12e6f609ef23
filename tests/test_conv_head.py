from types import SimpleNamespace

import numpy as np
import pytest
from interrupted_training import KilledError, Tiles, ignore
from sklearn.metrics import roc_auc_score
from tiny_conv_head import BACKBONE, CONV_HEAD

from pipeline.errors import CracksError
from pipeline.evaluation.model_architecture import describe_layers
from pipeline.models.backbones import build_backbone
from pipeline.models.conv_head import HEAD, activations_of, build_conv_head, conv_head_classifier, stored_weights
from pipeline.models.network import build_embedder
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.conv_head_fitting import fit_conv_head


def test_a_layer_that_the_backbone_lacks_is_refused_with_those_that_end_a_block():
    with pytest.raises(CracksError, match=r"mobilenet-v2 has no layer block_99_add, which map_layers.* block_2_add, "):
        activations_of(BACKBONE, ("block_2_add", "block_99_add"))


def test_an_image_size_whose_maps_do_not_fit_each_other_is_refused():
    backbone = BACKBONE.model_copy(update={"image_size_px": 72})
    with pytest.raises(CracksError, match=r"At image_size_px 72.* \[18, 9, 5\] positions a side.*a multiple of 32"):
        activations_of(backbone, CONV_HEAD.map_layers)


def test_the_parts_of_the_activations_are_the_maps_and_the_features():
    activations = activations_of(BACKBONE, CONV_HEAD.map_layers)
    assert activations.map_shapes == ((16, 16, 24), (8, 8, 32), (4, 4, 64))
    batch = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    *maps, features = activations.split(activations.network(batch))
    network = build_backbone("mobilenet-v2", BACKBONE.feature_layers)
    np.testing.assert_allclose(features, network(batch), atol=1e-5)
    lowest = type(network)(network.input, network.get_layer("block_2_add").output)(batch)
    np.testing.assert_allclose(maps[0], lowest, atol=1e-5)


def test_the_logit_of_a_classifier_is_the_mean_of_its_branches_for_images_of_any_size():
    activations = activations_of(BACKBONE, CONV_HEAD.map_layers)
    head = build_conv_head(activations, CONV_HEAD)
    classifier = conv_head_classifier(BACKBONE, activations, head)
    image = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), np.uint8)
    outputs = classifier(image)
    assert outputs["logit"].shape == (3, 1)
    np.testing.assert_allclose(outputs["features"], build_embedder(BACKBONE)(image)["features"], atol=1e-5)
    kernel, bias = head.layers[-2].get_weights()  # of the branch of the features, which is built last
    head.layers[-2].set_weights([kernel, bias + 1])
    np.testing.assert_allclose(classifier(image)["logit"] - outputs["logit"], 0.5, atol=1e-5)


def test_the_layers_of_a_classifier_are_described_with_those_of_its_network_and_its_head():
    activations = activations_of(BACKBONE, CONV_HEAD.map_layers)
    layers = describe_layers(conv_head_classifier(BACKBONE, activations, build_conv_head(activations, CONV_HEAD)))
    (network,), (head,) = ([layer for layer in layers if layer["name"] == name] for name in ("mobilenet-v2", HEAD))
    shapes = {layer["name"]: tuple(layer["shape"]) for layer in network["layers"]}
    assert shapes["block_2_add"] == (16, 16, 24)
    assert head["layers"][0]["shape"] == (activations.n_values,)
    assert head["layers"][-1]["shape"] == (2,)


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
    classifier, logits, _ = fit_conv_head(BACKBONE, train, validation, CONV_HEAD, path.parent, history)
    undisturbed = TrainingHistory(tmp_path_factory.mktemp("undisturbed") / "history.jsonl", ignore)
    return SimpleNamespace(
        classifier=classifier,
        logits=logits,
        history=history,
        resumed_steps=resumed_steps,
        undisturbed=fit_conv_head(BACKBONE, train, validation, CONV_HEAD, path.parent, undisturbed)[0],
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
def test_the_weights_of_a_trained_head_are_those_that_a_file_keeps(fitted):
    head = fitted.classifier.get_layer(HEAD)
    for kept, weight in zip(stored_weights(head), head.get_weights(), strict=True):
        np.testing.assert_array_equal(kept.astype(np.float32), weight)
