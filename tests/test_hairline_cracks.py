import numpy as np
import pytest
from pictures import Pictures

from pipeline.training.hairline_cracks import (
    CrackLines,
    draw_hairline_crack,
    extract_crack_line,
    extract_crack_lines,
    in_random_orientation,
)

SIZE_PX = 96


def concrete(seed=0):
    grey = np.random.default_rng(seed).normal(150, 4, (SIZE_PX, SIZE_PX))
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def cracked(top=40, width=8):
    """Concrete with a crack from the left edge to the right one."""
    picture = concrete()
    picture[top : top + width] = 60
    return picture


def test_the_centre_line_of_a_wide_crack_is_one_pixel_wide():
    line = extract_crack_line(cracked(top=40, width=8), SIZE_PX)
    rows, columns = np.nonzero(line)
    assert np.bincount(columns).max() <= 2  # a step, now and then
    assert len(np.unique(columns)) > 0.85 * SIZE_PX
    assert np.abs(rows - 43.5).mean() < 1.5


def test_a_centre_line_has_the_requested_size():
    line = extract_crack_line(cracked(top=40, width=8), 48)
    assert line.shape == (48, 48)
    assert np.abs(np.nonzero(line)[0] - 21.75).mean() < 1.5


@pytest.mark.parametrize("picture", [concrete(), np.full((SIZE_PX, SIZE_PX, 3), 130, np.uint8)], ids=["sound", "flat"])
def test_intact_concrete_has_no_centre_line(picture):
    assert not extract_crack_line(picture, SIZE_PX).any()


def test_a_band_that_is_only_slightly_darker_is_not_a_crack():
    picture = concrete()
    picture[40:48] -= 15
    assert not extract_crack_line(picture, SIZE_PX).any()


def test_a_stain_is_not_a_crack():
    picture = concrete()
    picture[20:32, 20:32] = 50
    assert not extract_crack_line(picture, SIZE_PX).any()


def test_two_pieces_with_a_small_gap_are_one_crack():
    picture = cracked()
    picture[:, 46:49] = 150
    columns = np.nonzero(extract_crack_line(picture, SIZE_PX))[1]
    assert set(range(30, 66)) <= set(columns.tolist())


def test_images_without_a_clear_crack_are_left_out_and_the_others_keep_their_folds():
    tiles = Pictures([cracked(20), concrete(), cracked(60), cracked(70)])
    found = extract_crack_lines(tiles, np.array([3, 1, 0]), np.array([2, 1, 0]), SIZE_PX)
    assert found.folds.tolist() == [2, 0]
    assert [round(float(np.nonzero(line)[0].mean())) for line in found.lines] == pytest.approx([73, 23], abs=1)


def test_no_images_give_no_crack_lines():
    nothing = np.empty(0, np.int64)
    found = extract_crack_lines(Pictures([concrete()]), nothing, nothing, SIZE_PX)
    assert isinstance(found, CrackLines)
    assert found.lines.shape == (0, SIZE_PX, SIZE_PX)


def surface():
    return np.full((SIZE_PX, SIZE_PX, 3), 150, np.float32)


def test_a_drawn_crack_is_dark_only_along_its_line_and_a_few_pixels_wide():
    line = np.zeros((SIZE_PX, SIZE_PX), bool)
    line[48] = True
    for seed in range(8):
        picture = draw_hairline_crack(surface(), line, np.random.default_rng(seed))
        is_dark = picture[..., 0] < 149
        across = min(is_dark.sum(axis=0).max(), is_dark.sum(axis=1).max())
        assert 1 <= across <= 11
        # At most the deepest that a crack is drawn, where it is not faded at all: 0.6 x 1.4.
        assert 150 * (1 - 0.84) - 1e-3 <= picture.min() < 149


def test_an_empty_line_does_not_change_the_surface():
    picture = draw_hairline_crack(surface(), np.zeros((SIZE_PX, SIZE_PX), bool), np.random.default_rng(0))
    np.testing.assert_array_equal(picture, surface())


def test_cracks_differ_in_depth_and_place_from_one_seed_to_the_next():
    line = np.zeros((SIZE_PX, SIZE_PX), bool)
    line[20] = True
    pictures = [draw_hairline_crack(surface(), line, np.random.default_rng(seed)) for seed in range(12)]
    assert len({float(picture.min()) for picture in pictures}) == 12
    means = [(picture[..., 0].mean(axis=1), picture[..., 0].mean(axis=0)) for picture in pictures]
    places = {("row", by_row.argmin()) if by_row.min() < by_column.min() else ("column", by_column.argmin())
              for by_row, by_column in means}  # fmt: skip
    assert places == {("row", 20), ("row", 75), ("column", 20), ("column", 75)}


def test_all_eight_orientations_occur():
    picture = np.arange(9).reshape(3, 3)
    seen = {in_random_orientation(picture, np.random.default_rng(seed)).tobytes() for seed in range(100)}
    assert len(seen) == 8
