from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.network import image_input
from pipeline.models.tf import keras
from pipeline.params import Augmentation
from pipeline.training.activation_cache import cache_activations
from pipeline.training.augmentation import AugmentedViews, augmented, strongly_augmented

BOTH = Augmentation(flips="horizontal_and_vertical", max_rotation_turns=0.5)
UPRIGHT = {"horizontal": 1, "vertical": 0}  # the axis that each flip turns round


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(derandomize=True, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_an_augmented_image_keeps_its_shape_and_gets_no_new_colours(height, width, seed):
    grey = np.full((height, width, 3), 130, np.uint8)
    turned = augmented(grey, np.random.default_rng(seed), BOTH)
    np.testing.assert_array_equal(turned, grey)


@pytest.mark.parametrize(("flips", "axis"), UPRIGHT.items())
def test_without_rotation_an_image_is_unchanged_or_flipped_as_configured(flips, axis):
    image = noise(5, 7)
    seen = {
        augmented(image, np.random.default_rng(seed), Augmentation(flips=flips, max_rotation_turns=0)).tobytes()
        for seed in range(20)
    }
    assert seen == {image.tobytes(), np.flip(image, axis).tobytes()}


@settings(derandomize=True, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_strongly_augmented_image_keeps_its_shape_and_is_reproducible(height, width, seed):
    image = noise(height, width)
    changed = strongly_augmented(image, np.random.default_rng(seed))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(changed, strongly_augmented(image, np.random.default_rng(seed)))


def test_strongly_augmented_images_differ_in_scale_light_colour_and_sharpness():
    stripes = np.full((96, 96, 3), 140, np.uint8)
    stripes[:, 40:48] = 60
    views = np.stack([strongly_augmented(stripes, np.random.default_rng(seed)) for seed in range(60)]).astype(float)
    # the darkest twelfth of a view is the stripe, however it is turned
    n_dark = (views.mean(3) < views.mean((1, 2, 3))[:, None, None] - 15).sum((1, 2)) / 96
    assert n_dark.min() < 6
    assert n_dark.max() > 8.5
    assert np.ptp(views.mean((1, 2, 3))) > 40
    assert np.ptp(views.max((1, 2)) - views.min((1, 2)), axis=0).min() > 40
    assert np.ptp(views.mean((1, 2))[:, 0] - views.mean((1, 2))[:, 2]) > 15
    assert np.ptp(np.abs(np.diff(views, axis=2)).mean((1, 2, 3))) > 1


def test_views_are_the_images_and_then_reproducible_augmented_ones():
    images = SimpleNamespace(
        sizes=np.array([[20, 20], [20, 30]]), pixels=lambda position: noise(20, 20 + 10 * position)
    )
    views = AugmentedViews(images, 3, partial(augmented, augmentation=BOTH), seed=5)
    assert views.sizes.tolist() == images.sizes.tolist() * 3
    for position in range(6):
        view = views.pixels(position)
        assert view.shape[:2] == tuple(views.sizes[position])
        np.testing.assert_array_equal(view, views.pixels(position))
        assert np.array_equal(view, images.pixels(position % 2)) == (position < 2)
    assert not np.array_equal(views.pixels(2), views.pixels(4))


def test_cached_activations_equal_the_outputs_of_the_layers(tmp_path):
    image = image_input()
    lower = keras.Model(image, {"features": keras.layers.Resizing(4, 4)(keras.layers.Rescaling(1 / 255)(image))})
    sizes = np.array([[8, 8], [12, 12], [8, 8]])
    images = SimpleNamespace(sizes=sizes, pixels=lambda position: noise(*sizes[position], seed=position))
    kept = cache_activations(lower, images, tmp_path)
    assert (kept.shape, len(kept.sizes)) == ((4, 4, 3), 3)
    for position in range(3):
        expected = lower(images.pixels(position)[None])["features"][0]
        np.testing.assert_allclose(kept.pixels(position), expected, atol=1e-3)
