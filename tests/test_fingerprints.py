import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from pipeline.data.demo import Recipe, draw
from pipeline.data.fingerprints import SYMMETRIES, compare, fingerprint, invariants
from pipeline.data.images import decode, thumbnail

RECIPE = Recipe(
    seed=3,
    size_px=192,
    images_per_class=10,
    mirrored_per_class=0,
    jpeg_quality=95,
    crack_width_px=(0.9, 6),
    crack_darkness=(0.45, 0.95),
    look_alikes_crack=0.4,
    look_alikes_intact=0.8,
)
TURNS = {
    "mirrored left-right": Image.Transpose.FLIP_LEFT_RIGHT,
    "mirrored up-down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned by 90 degrees": Image.Transpose.ROTATE_90,
    "turned by 180 degrees": Image.Transpose.ROTATE_180,
    "turned by 270 degrees": Image.Transpose.ROTATE_270,
    "transposed": Image.Transpose.TRANSPOSE,
    "transversed": Image.Transpose.TRANSVERSE,
}
ALTERATIONS = {
    "nothing": lambda image: image,
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darkened": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "smaller": lambda image: image.resize((144, 144)),
    "larger": lambda image: image.resize((255, 255)),
}


@pytest.fixture(scope="module")
def drawn():
    """Twenty drawn tiles of concrete, half of them cracked."""
    files = [content for path, content in draw(RECIPE) if not path.endswith("0011.jpg")]
    return [Image.open(io.BytesIO(content)) for content in files]


def fingerprints_of(images):
    return np.stack([fingerprint(thumbnail(np.asarray(image.convert("RGB")))) for image in images])


def turned(image, symmetry):
    return image if symmetry == "saved again" else image.transpose(TURNS[symmetry])


def comparison(*images):
    """The symmetry in which two images agree best, and their correlation."""
    symmetry, correlation = compare(fingerprints_of(images), np.array([[0, 1]]))
    return SYMMETRIES[symmetry[0]], correlation[0]


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("quality", [95, 50])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_an_altered_copy_agrees_in_its_symmetry(drawn, encode, symmetry, quality, alteration):
    copies = [
        Image.fromarray(decode(encode(ALTERATIONS[alteration](turned(image, symmetry)), quality=quality)))
        for image in drawn[::5]
    ]
    for image, copy in zip(drawn[::5], copies, strict=True):
        best, correlation = comparison(image, copy)
        assert best == symmetry
        assert correlation > 0.75


def test_different_tiles_do_not_agree(drawn):
    pairs = np.stack(np.triu_indices(len(drawn), 1), axis=1)
    assert compare(fingerprints_of(drawn), pairs)[1].max() < 0.35


def test_correlations_are_those_of_numpy():
    first, second = np.random.default_rng(0).integers(-127, 128, (2, 32, 32)).astype(np.int8)
    columns = np.where(np.arange(32) % 2, -1, 1)
    expected = {
        "saved again": first,
        "mirrored left-right": first * columns,
        "mirrored up-down": first * columns[:, None],
        "turned by 180 degrees": first * columns * columns[:, None],
        "transposed": first.T,
    }
    for symmetry, values in expected.items():
        blend = np.rint(0.8 * values + 0.2 * second).astype(np.int8)
        cosine = np.vdot(values, blend.astype(float)) / np.linalg.norm(values) / np.linalg.norm(blend.astype(float))
        best, correlation = compare(np.stack([first, blend]), np.array([[0, 1]]))
        assert SYMMETRIES[best[0]] == symmetry
        assert correlation[0] == pytest.approx(cosine, abs=1e-5)


noisy_images = st.builds(
    lambda seed, width, height: Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ).filter(ImageFilter.GaussianBlur(2)),
    seed=st.integers(0, 10_000),
    width=st.integers(64, 200),
    height=st.integers(64, 200),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(image=noisy_images, symmetry=st.sampled_from(SYMMETRIES))
def test_no_symmetry_changes_the_invariants_and_every_one_is_recognised(image, symmetry):
    copy = turned(image, symmetry)
    first, second = invariants(fingerprints_of([image, copy]))
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert first @ second > 0.95
    best, correlation = comparison(image, copy)
    assert best == symmetry
    assert correlation > 0.95


def test_invariants_of_different_tiles_are_unlike(drawn):
    vectors = invariants(fingerprints_of(drawn))
    assert np.triu(vectors @ vectors.T, k=1).max() < 0.6


def test_a_fingerprint_uses_the_whole_range_and_leaves_out_shading():
    (values,) = fingerprints_of([Image.effect_noise((100, 80), 40)])
    assert (values.shape, values.dtype) == ((32, 32), np.int8)
    assert np.abs(values.astype(int)).max() == 127
    assert not values[0].any()
    assert not values[:, 0].any()
    assert not values[:3, :2].any()
    assert values[2, 3] != 0


@pytest.mark.parametrize("grey", [0, 100, 255])
def test_a_plain_image_has_no_fingerprint(grey):
    assert not fingerprints_of([Image.new("L", (70, 90), grey)]).any()


def test_a_plain_image_correlates_with_nothing():
    fingerprints = fingerprints_of([Image.new("L", (64, 64)), Image.effect_noise((64, 64), 40)])
    assert compare(fingerprints, np.array([[0, 0], [0, 1]]))[1].tolist() == [0, 0]
    assert not invariants(fingerprints)[0].any()


def test_a_negative_does_not_agree_with_its_original():
    image = Image.effect_noise((100, 100), 40)
    assert comparison(image, Image.eval(image, lambda grey: 255 - grey))[1] < 0.35


def test_a_vignette_and_a_joint_in_common_do_not_make_copies():
    ramp = np.linspace(-1, 1, 128)
    scene = 160 - 40 * (ramp[:, None] ** 2 + ramp**2)
    scene[60:66] -= 60
    noise = np.random.default_rng(0).normal(0, 8, (2, 128, 128))
    first, second = (Image.fromarray(np.clip(scene + grain, 0, 255).astype(np.uint8)) for grain in noise)
    assert comparison(first, second)[1] < 0.2


def test_comparing_no_pairs_gives_none():
    symmetries, correlations = compare(np.zeros((3, 32, 32), np.int8), np.empty((0, 2), np.int64))
    assert symmetries.shape == correlations.shape == (0,)


def test_comparing_in_blocks_changes_nothing(monkeypatch):
    fingerprints = np.random.default_rng(0).integers(-127, 128, (40, 32, 32)).astype(np.int8)
    pairs = np.stack(np.triu_indices(40, 1), axis=1)  # 780
    whole = compare(fingerprints, pairs)
    monkeypatch.setattr("pipeline.data.fingerprints.BLOCK_PAIRS", 7)
    for values, expected in zip(compare(fingerprints, pairs), whole, strict=True):
        np.testing.assert_array_equal(values, expected)
