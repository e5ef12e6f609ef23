import numpy as np
import pytest

from pipeline.evaluation.examples import occlusion_overlay
from pipeline.evaluation.occlusion import N_CELLS_A_SIDE, occlusion_map


def tile(dark_cell=None, size=(70, 140)):
    """A light tile, in which one cell of the grid is black."""
    pixels = np.full((*size, 3), 200, np.uint8)
    if dark_cell is not None:
        row, column = dark_cell
        height, width = size[0] // N_CELLS_A_SIDE, size[1] // N_CELLS_A_SIDE
        pixels[row * height : (row + 1) * height, column * width : (column + 1) * width] = 0
    return pixels


def likes_dark(batch):
    """The probability of a crack: one half on a tile without black, more with it."""
    return (0.5 + 0.4 * (batch.min(axis=(1, 2, 3)) < 10)).astype(np.float32)


@pytest.mark.parametrize("cell", [(0, 0), (2, 5), (6, 6)])
def test_the_map_is_positive_only_in_the_cell_that_the_output_depends_on(cell):
    overlay = occlusion_map(likes_dark, tile(cell))
    expected = np.zeros((7, 7))
    expected[cell] = np.log(0.9 / 0.1)  # from the logit of 0.9 to that of 0.5, which is 0
    np.testing.assert_allclose(overlay, expected, atol=1e-5)


def test_evidence_against_a_crack_is_negative():
    overlay = occlusion_map(lambda batch: 1 - likes_dark(batch), tile((3, 3)))
    assert overlay[3, 3] == pytest.approx(-np.log(9), abs=1e-5)


def test_hidden_cells_have_the_mean_colour_and_each_pixel_is_hidden_once():
    seen = []
    pixels = np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)  # not a multiple of seven

    def score(batch):
        seen.append(batch)
        return np.full(len(batch), 0.5, np.float32)

    occlusion_map(score, pixels)
    (batch,) = seen
    np.testing.assert_array_equal(batch[0], pixels)
    colour = pixels.mean(axis=(0, 1)).round()
    hidden = (batch[1:] == colour).all(axis=-1) & (pixels != colour).any(axis=-1)
    np.testing.assert_array_equal(hidden.sum(axis=0), (pixels != colour).any(axis=-1))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_certain_probability_has_a_finite_map(probability):
    overlay = occlusion_map(lambda batch: np.full(len(batch), probability, np.float32), tile())
    np.testing.assert_array_equal(overlay, np.zeros((7, 7)))


def test_the_overlay_is_red_for_a_crack_blue_against_it_and_absent_elsewhere():
    overlay = np.zeros((7, 7))
    overlay[1, 1], overlay[5, 5] = 2.0, -2.0
    drawn = occlusion_overlay(tile(), overlay).astype(int)
    assert drawn.shape == (70, 140, 3)
    red, blue = drawn[15, 30], drawn[55, 110]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert drawn[15, 110].tolist() == [200, 200, 200]


def test_the_strongest_cell_has_the_same_opacity_at_any_scale():
    overlay = np.random.default_rng(0).normal(size=(7, 7))
    np.testing.assert_array_equal(occlusion_overlay(tile(), overlay), occlusion_overlay(tile(), 100 * overlay))
    np.testing.assert_array_equal(occlusion_overlay(tile(), 0 * overlay), tile())
