import numpy as np
import openvino
import pytest

from pipeline.errors import CracksError
from pipeline.inference.openvino_cpu import supported_precision
from pipeline.models.linear_head import LinearHead, linear_classifier
from pipeline.models.network import build_embedder, to_openvino
from pipeline.params import Backbone
from pipeline.training import embedder
from pipeline.training.embedder import (
    Embedder,
    on_gpu,
    openvino_compute,
    tensorflow_compute,
)

BACKBONE = Backbone(architecture="mobilenet-v2", image_size_px=64, feature_layers=("block_11_expand", "head_conv"))
N_FEATURES = 2 * (576 + 1280)


class Tiles:
    """Labelled images in memory, of two sizes in turn."""

    def __init__(self, draw_tile, n):
        self._tiles = [draw_tile(seed, cracked=seed % 2 == 0, size_px=64 + 16 * (seed % 2)) for seed in range(n)]
        self.sizes = np.array([tile.shape[:2] for tile in self._tiles])

    def pixels(self, position):
        return self._tiles[position]


@pytest.fixture(scope="module")
def model():
    return build_embedder(BACKBONE)


def test_openvino_and_tensorflow_give_the_same_features_for_every_size(model, draw_tile):
    fast, reference = openvino_compute(to_openvino(model)), tensorflow_compute(model)
    for size_px in (64, 50, 227):
        batch = np.stack([draw_tile(seed, cracked=True, size_px=size_px) for seed in range(3)])
        np.testing.assert_allclose(fast(batch), reference(batch), atol=1e-3)


def test_the_features_of_images_of_several_sizes_keep_their_order(model, draw_tile):
    tiles = Tiles(draw_tile, 40)
    features = Embedder(BACKBONE).features(tiles)
    assert (features.shape, features.dtype) == ((40, N_FEATURES), np.float16)
    for position in (0, 17, 39):
        alone = np.asarray(model(tiles.pixels(position)[None])["features"])[0]
        np.testing.assert_allclose(features[position], alone, rtol=2e-3, atol=2e-3)


def test_features_are_the_same_to_the_bit_when_they_are_computed_again(draw_tile):
    tiles = Tiles(draw_tile, 24)
    np.testing.assert_array_equal(Embedder(BACKBONE).features(tiles), Embedder(BACKBONE).features(tiles))


@pytest.mark.skipif(
    on_gpu() or supported_precision("bf16") != "bf16", reason="computed on a GPU, or a CPU without bfloat16"
)
def test_only_training_features_are_computed_in_the_training_precision(draw_tile):
    tiles = Tiles(draw_tile, 8)
    exact = Embedder(BACKBONE).features(tiles)
    faster = Embedder(BACKBONE.model_copy(update={"training_precision": "bf16"}))
    np.testing.assert_array_equal(faster.features(tiles), exact)
    learned_from = faster.features(tiles, for_training=True)
    assert (learned_from != exact).mean() > 0.5
    assert np.abs(learned_from - exact).mean() < 0.1 * exact.std()
    np.testing.assert_array_equal(Embedder(BACKBONE).features(tiles, for_training=True), exact)


def test_a_cpu_without_the_training_precision_uses_single_precision_and_logs_it(draw_tile, monkeypatch, caplog):
    monkeypatch.setattr(embedder, "supported_precision", lambda precision: "f32")
    tiles = Tiles(draw_tile, 8)
    with caplog.at_level("INFO"):
        made = Embedder(BACKBONE.model_copy(update={"training_precision": "bf16"}))
    np.testing.assert_array_equal(made.features(tiles, for_training=True), made.features(tiles))
    assert "This CPU does not support bf16: training features are computed in f32 too" in caplog.text


def test_a_precision_that_openvino_does_not_list_for_the_cpu_is_not_supported(monkeypatch):
    class OldCore:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8", "BIN"]

    monkeypatch.setattr(openvino, "Core", OldCore)
    assert supported_precision("bf16") == "f32"
    assert supported_precision("f32") == "f32"


def test_an_error_in_a_batch_is_raised(draw_tile, monkeypatch):
    tiles = Tiles(draw_tile, 4)
    monkeypatch.setattr(tiles, "pixels", lambda position: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        Embedder(BACKBONE).features(tiles)


def test_a_linear_head_on_embedded_features_equals_the_exported_graph(draw_tile):
    tiles = Tiles(draw_tile, 6)
    kernel = np.random.default_rng(0).normal(0, 0.05, N_FEATURES).astype(np.float32)
    logits = Embedder(BACKBONE).features(tiles).astype(np.float32) @ kernel + 0.25
    classifier = linear_classifier(BACKBONE, LinearHead(kernel, 0.25))
    for position in range(6):
        logit = float(classifier(tiles.pixels(position)[None])["logit"][0, 0])
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(1 / (1 + np.exp(-logits[position])), abs=1e-3)


def test_feature_layers_give_mean_and_maximum_of_each_convolution(model, draw_tile):
    batch = np.stack([draw_tile(1)])
    features = np.asarray(model(batch)["features"])[0]
    means, maxima = features[:576], features[576:1152]
    assert (means <= maxima).all()
    assert (means < maxima).mean() > 0.5
    plain = build_embedder(Backbone(architecture="mobilenet-v2", image_size_px=64))
    np.testing.assert_allclose(features[1152 : 1152 + 1280], np.asarray(plain(batch)["features"])[0], atol=1e-4)


def test_an_unknown_feature_layer_is_refused_with_the_known_ones():
    backbone = BACKBONE.model_copy(update={"feature_layers": ("block_99_expand",)})
    message = (
        r"mobilenet-v2 has no convolution block_99_expand, which feature_layers names\. Its convolutions are block"
    )
    with pytest.raises(CracksError, match=message):
        build_embedder(backbone)
