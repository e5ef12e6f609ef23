import numpy as np
import pytest
from drawn_data import wall_with_a_hole

from pipeline.data.fingerprints import SYMMETRIES
from pipeline.data.images import decode, thumbnail
from pipeline.data.near_duplicates import DOUBTFUL_FROM, MIN_AGREEMENT
from pipeline.data.pixel_agreement import agreements

TRANSFORMED = {
    "saved again": lambda grey: grey,
    "mirrored left-right": np.fliplr,
    "mirrored up-down": np.flipud,
    "turned by 180 degrees": lambda grey: np.rot90(grey, 2),
    "transposed": np.transpose,
    "turned by 270 degrees": lambda grey: np.rot90(grey, 3),
    "turned by 90 degrees": np.rot90,
    "transversed": lambda grey: np.rot90(grey, 2).T,
}


def grain(seed=0, size_px=64):
    return np.random.default_rng(seed).normal(128, 25, (size_px, size_px)).clip(0, 255).astype(np.uint8)


def agreement(first, second, symmetry=0):
    return float(agreements(first[None], second[None], np.array([symmetry]))[0])


@pytest.mark.parametrize("kind", SYMMETRIES)
def test_each_symmetry_is_undone(kind):
    assert agreement(grain(), TRANSFORMED[kind](grain()), SYMMETRIES.index(kind)) == pytest.approx(1, abs=1e-4)


def test_different_grain_has_no_agreement_in_any_symmetry():
    found = agreements(np.stack([grain(0)] * 8), np.stack([grain(1)] * 8), np.arange(8))
    assert np.abs(found).max() < DOUBTFUL_FROM


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (-3, 0), (7, -8)])
def test_a_shift_of_up_to_an_eighth_is_undone(rows, columns):
    large = grain(size_px=96)
    shifted = large[16 + rows : 80 + rows, 16 + columns : 80 + columns]
    assert agreement(large[16:80, 16:80], shifted) > 0.9


def test_a_larger_shift_is_not_undone():
    large = grain(size_px=96)
    assert agreement(large[16:80, 16:80], large[28:92, 16:80]) < DOUBTFUL_FROM


@pytest.mark.parametrize("change", [lambda grey: grey * 0.6, lambda grey: grey * 0.5 + 120, lambda grey: grey**1.02])
def test_brightness_and_contrast_do_not_matter(change):
    changed = change(grain().astype(float)).clip(0, 255).astype(np.uint8)
    assert agreement(grain(), changed) > 0.95


def test_a_gradient_of_light_does_not_matter():
    light = np.linspace(-60, 60, 64)
    assert agreement(grain(), (grain() * 0.5 + 64 + light).clip(0, 255).astype(np.uint8)) > 0.95


def test_where_most_of_a_copy_is_white_the_rest_decides():
    copy = grain()
    copy[:, 24:] = 255
    assert agreement(grain(), copy) > 0.6
    assert agreement(grain(1), copy) < DOUBTFUL_FROM


def test_a_hole_at_the_same_place_makes_no_copies_of_two_walls():
    first, second = (thumbnail(decode(wall_with_a_hole(seed))) for seed in (1, 2))
    assert agreement(first, second) < DOUBTFUL_FROM


def test_walls_that_share_more_grain_agree_more():
    def of(shared):
        return agreement(*(thumbnail(decode(wall_with_a_hole(seed, shared=shared))) for seed in (1, 2)))

    assert of(0.3) < DOUBTFUL_FROM < of(0.45) < MIN_AGREEMENT < of(0.7)


@pytest.mark.parametrize("level", [0, 255])
def test_plain_images_have_no_agreement(level):
    assert agreement(np.full((64, 64), level, np.uint8), grain()) == 0
    assert agreement(np.full((64, 64), level, np.uint8), np.full((64, 64), level, np.uint8)) == 0
