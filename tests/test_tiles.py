import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crack_maps.tiles import grid, starts


def test_the_last_tile_is_moved_inwards_to_end_at_the_edge():
    assert starts(10, 4, 4).tolist() == [0, 4, 6]
    assert starts(12, 4, 4).tolist() == [0, 4, 8]
    assert starts(10, 4, 2).tolist() == [0, 2, 4, 6]


def test_a_side_as_long_as_a_tile_has_one():
    assert starts(4, 4, 2).tolist() == [0]


def test_a_photo_of_a_bridge_deck_has_the_tiles_of_its_data_set():
    tops, lefts, size = grid((3584, 4608), 256, 0)
    assert (len(tops), len(lefts), size) == (14, 18, 256)


def test_at_half_overlap_each_pixel_inside_is_in_four_tiles():
    tops, lefts, _ = grid((3584, 4608), 256, 0.5)
    assert (len(tops), len(lefts)) == (27, 35)


def test_a_narrow_photo_gets_narrow_tiles():
    tops, lefts, size = grid((100, 250), 256, 0)
    assert (tops.tolist(), lefts.tolist(), size) == ([0], [0, 100, 150], 100)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300), st.floats(0, 0.9))
def test_every_pixel_is_in_a_tile_and_no_tile_leaves_the_photo(height, width, size_px, overlap):
    tops, lefts, size = grid((height, width), size_px, overlap)
    for positions, length in ((tops, height), (lefts, width)):
        assert positions.min() == 0
        assert positions.max() + size == length
        assert (np.diff(positions) <= size).all()
        assert (np.diff(positions) > 0).all()
