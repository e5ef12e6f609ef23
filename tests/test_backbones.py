import re
from functools import cache

import numpy as np
import pytest
import skimage.data
from PIL import Image

from pipeline.errors import CracksError
from pipeline.models import backbones
from pipeline.models.backbones import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD, build_backbone
from pipeline.models.tf import keras
from pipeline.models.weights import read_weights

LITE = ["efficientnet-lite0"]
IMAGENET_SIZE_PX = 224
EGYPTIAN_CAT = 285
ESPRESSO = 967

pretrained_backbone = cache(build_backbone)


def photo(image, size_px):
    """Resize the shorter side, crop the centre, normalise: (size_px, size_px, 3) float32."""
    resized = Image.fromarray(image)
    scale = (size_px + 32) / min(resized.size)
    resized = resized.resize((round(resized.width * scale), round(resized.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - size_px) // 2, (resized.height - size_px) // 2
    pixels = np.asarray(resized.crop((left, top, left + size_px, top + size_px)), np.float32) / 255
    return ((pixels - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)


@pytest.mark.parametrize("architecture", LITE)
def test_two_photos_are_classified_as_their_imagenet_classes(architecture):
    photos = np.stack([photo(image, IMAGENET_SIZE_PX) for image in (skimage.data.cat(), skimage.data.coffee())])
    classifier = read_weights(architecture)
    logits = pretrained_backbone(architecture)(photos) @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    assert list(np.argmax(logits, axis=1)) == [EGYPTIAN_CAT, ESPRESSO]


# A second implementation to compare with: NumPy, PyTorch's layout, layers found by their names in the files, strides
# by the index of the block.
STRIDED_BLOCKS = {
    "efficientnet-lite0": (1, 3, 5, 11),
    "mobilenet-v2": (1, 3, 6, 13),
}


def published_layers(state):
    """Names of (convolution, normalisation): of the stem, of each block and of the head."""
    if "_conv_stem.weight" in state:
        parts = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        blocks = [[(f"_blocks.{n}.{conv}", f"_blocks.{n}.{norm}") for conv, norm in parts] for n in range(99)]
        stem, head = ("_conv_stem", "_bn0"), ("_conv_head", "_bn1")
    else:
        blocks = [[(f"features.{n}.conv.{i}", f"features.{n}.conv.{i + 1}") for i in (0, 3, 6)] for n in range(1, 18)]
        stem, head = ("features.0.0", "features.0.1"), ("features.18.0", "features.18.1")
    blocks = [[names for names in block if f"{names[0]}.weight" in state] for block in blocks]
    return stem, [block for block in blocks if block], head


def convolve(x, weight, stride, is_same):
    """(in, h, w) -> (out, ceil(h / stride), ceil(w / stride))."""
    kernel = weight.shape[-1]
    pads = [(kernel // 2, kernel // 2)] * 2  # PyTorch: the same on both sides, whatever the stride
    if is_same:
        totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[1:]]
        pads = [(total // 2, total - total // 2) for total in totals]
    x = np.pad(x, [(0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    if weight.shape[1] == 1:
        return np.einsum("chwyx,cyx->chw", windows, weight[:, 0])
    return np.tensordot(weight, windows, axes=([1, 2, 3], [0, 3, 4]))


def published_features(image, state, architecture):
    """(h, w, 3) -> (1280,)."""
    is_lite = architecture in LITE

    def layer(x, conv, norm, stride=1, *, relu6=True):
        x = convolve(x, state[f"{conv}.weight"], stride, is_same=is_lite)
        gamma, beta, mean, variance = (
            state[f"{norm}.{name}"][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
        )
        x = (x - mean) / np.sqrt(variance + (1e-3 if is_lite else 1e-5)) * gamma + beta
        return np.clip(x, 0, 6) if relu6 else x

    stem, blocks, head = published_layers(state)
    x = layer(image.transpose(2, 0, 1), *stem, stride=2)
    for index, (*expansion, depthwise, projection) in enumerate(blocks):
        inputs = x
        for names in expansion:
            x = layer(x, *names)
        x = layer(x, *depthwise, stride=2 if index in STRIDED_BLOCKS[architecture] else 1)
        x = layer(x, *projection, relu6=False)
        x = inputs + x if inputs.shape == x.shape else x
    return layer(x, *head).mean(axis=(1, 2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("height_px", "width_px"), [(64, 96), (65, 47), (32, 32)])
def test_features_equal_those_of_a_second_implementation_for_any_image_size(architecture, height_px, width_px):
    image = photo(skimage.data.cat(), 96)[:height_px, :width_px]
    features = pretrained_backbone(architecture)(image[None])
    expected = published_features(image, read_weights(architecture), architecture)
    assert features.dtype == "float32"
    np.testing.assert_allclose(features, expected[None], atol=2e-4)


def correlations(model, photos, moving_means):
    """Correlation over the channels of the means in `photos` with the given means, at each normalisation after ReLU6.

    Expansions are left out: their input is a projection, whose mean over many photos is near zero in every channel.
    """
    inputs = {name: model.get_layer(name).input for name in moving_means}
    observed = keras.Model(model.input, inputs)(photos)
    means = {name: np.mean(value, axis=(0, 1, 2)) for name, value in observed.items()}
    return np.array([np.corrcoef(means[name], expected)[0, 1] for name, expected in moving_means.items()])


def test_photos_reproduce_the_channel_means_of_every_mobilenet_normalisation():
    model = pretrained_backbone("mobilenet-v2")
    norms = [layer.name for layer in model.layers if layer.name.endswith("_bn")]
    state = read_weights("mobilenet-v2")
    stored = [mean for name, mean in state.items() if name.endswith("running_mean")]
    moving_means = {
        name: mean for name, mean in zip(norms, stored, strict=True) if "block" in name and "expand" not in name
    }
    images = (skimage.data.cat(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket())
    photos = np.stack([photo(image, 224) for image in images])
    assert correlations(model, photos, moving_means).min() > 0.9  # 0.94; with an epsilon of 1e-3 0.85
    untrained = build_backbone("mobilenet-v2", pretrained=False)
    assert np.median(correlations(untrained, photos, moving_means)) < 0.3


def test_mobilenet_numbers_its_blocks_as_keras_applications_does():
    ours = build_backbone("mobilenet-v2", pretrained=False)
    theirs = keras.applications.MobileNetV2(input_shape=(224, 224, 3), include_top=False, weights=None)
    kernels = {
        layer.name: layer.kernel.shape
        for layer in theirs.layers
        if re.match(r"block_\d+_\w+(?<!_BN)$", layer.name) and layer.weights
    }
    assert {name: ours.get_layer(name).kernel.shape for name in kernels} == kernels


def test_layers_are_named_by_their_position_in_the_network():
    model = build_backbone("efficientnet-lite0", pretrained=False)
    names = [layer.name for layer in model.layers]
    assert model.name == "efficientnet-lite0"
    assert names[:6] == [
        "image",
        "stem_conv",
        "stem_conv_bn",
        "stem_conv_relu",
        "block_0_depthwise",
        "block_0_depthwise_bn",
    ]
    assert names[-5:] == ["block_15_project_bn", "head_conv", "head_conv_bn", "head_conv_relu", "features"]


def test_a_saved_model_with_a_backbone_inside_loads_safely_with_equal_outputs(tmp_path):
    inputs = keras.Input((64, 64, 3))
    model = keras.Model(inputs, keras.layers.Dense(1)(pretrained_backbone("mobilenet-v2")(inputs)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    image = photo(skimage.data.coffee(), 64)[None]
    np.testing.assert_array_equal(loaded(image), model(image))
    assert loaded.get_layer("mobilenet-v2").get_layer("block_11_expand").kernel.shape == (1, 1, 96, 576)


def test_a_backbone_without_pretraining_needs_no_weights(monkeypatch):
    monkeypatch.setattr(backbones, "read_weights", lambda _: pytest.fail("the weights were looked for"))
    build_backbone("mobilenet-v2", pretrained=False)


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(CracksError, match=r"'resnet'\. Choose one of: efficientnet-lite0, mobilenet-v2"):
        build_backbone("resnet")
