import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import copies
from pipeline.copies import connected_groups, copy_pairs
from pipeline.images import decode, thumbnail
from pipeline.params import Copies

LIMITS = Copies(min_similarity=0.97, max_brightness_difference=6)


def pairs_of(images, limits=LIMITS):
    """The pairs of copies among images in RGB."""
    return copy_pairs(np.stack([thumbnail(image) for image in images]), limits).tolist()


def flat(grey, *, size_px=24):
    return np.full((size_px, size_px), grey, np.uint8)


def noise(n, seed=0):
    """Thumbnails of noise between 50 and 200."""
    return np.random.default_rng(seed).integers(50, 200, (n, 24, 24)).astype(np.uint8)


@pytest.fixture(scope="module")
def tile(draw_tile):
    return draw_tile(1, cracked=True, size_px=96)


def test_a_byte_identical_copy_is_found(tile):
    assert pairs_of([tile, tile]) == [[0, 1]]


def test_a_copy_that_was_saved_again_is_found(tile, encode):
    assert pairs_of([tile, decode(encode(tile, quality=80))]) == [[0, 1]]


def test_a_copy_of_another_size_is_found(tile):
    smaller = np.asarray(Image.fromarray(tile).resize((64, 64), Image.Resampling.BICUBIC))
    assert pairs_of([tile, smaller]) == [[0, 1]]


@pytest.mark.parametrize(
    "mirror",
    [lambda pixels: pixels[:, ::-1], lambda pixels: pixels[::-1], lambda pixels: pixels[::-1, ::-1]],
    ids=["left-right", "up-down", "by 180 degrees"],
)
@pytest.mark.parametrize("quality", [95, 80])
def test_a_mirrored_copy_that_was_saved_again_is_found(tile, encode, mirror, quality):
    mirrored = decode(encode(np.ascontiguousarray(mirror(tile)), quality=quality))
    assert pairs_of([tile, mirrored]) == [[0, 1]]


def test_a_quarter_turn_is_not_looked_for(tile):
    assert pairs_of([tile, np.rot90(tile).copy()]) == []


def test_different_tiles_are_not_copies(draw_tile):
    tiles = [draw_tile(seed, cracked=seed % 2 == 0, size_px=96) for seed in range(30)]
    assert pairs_of(tiles) == []


def test_each_pair_is_found_once_the_earlier_image_first(draw_tile):
    first, second = draw_tile(1), draw_tile(2)
    pairs = pairs_of([first, second, first[:, ::-1].copy(), second, first])
    assert sorted(pairs) == [[0, 2], [0, 4], [1, 3], [2, 4]]


@pytest.mark.parametrize(("difference", "pairs"), [(5, [[0, 1]]), (6, [[0, 1]]), (7, [])])
@pytest.mark.parametrize("sign", [1, -1])
def test_copies_may_differ_in_brightness_up_to_the_limit(difference, pairs, sign):
    (original,) = noise(1)
    other = (original + np.int16(sign * difference)).astype(np.uint8)
    assert copy_pairs(np.stack([original, other]), LIMITS).tolist() == pairs


def test_similarity_is_the_cosine_of_the_centred_thumbnails():
    original, other = noise(2).astype(float)
    blend = (0.75 * original + 0.25 * other).round().astype(np.uint8)
    original = original.astype(np.uint8)
    cosine = np.corrcoef(original.ravel(), blend.ravel())[0, 1]
    assert 0.9 < cosine < 0.97
    both = np.stack([original, blend])
    assert copy_pairs(both, Copies(min_similarity=cosine - 0.001, max_brightness_difference=255)).tolist() == [[0, 1]]
    assert copy_pairs(both, Copies(min_similarity=cosine + 0.001, max_brightness_difference=255)).tolist() == []


def test_a_negative_is_not_a_copy():
    (original,) = noise(1)
    half = np.concatenate([original[:12], original[11::-1]])
    symmetric = np.concatenate([half[:, :12], half[:, 11::-1]], axis=1)  # the same in all four mirrorings
    assert copy_pairs(np.stack([symmetric, 250 - symmetric]), LIMITS).tolist() == []


def test_plain_images_do_not_merge_with_each_other_or_with_anything():
    thumbnails = np.stack([flat(100), flat(100), flat(101), flat(0), flat(255), *noise(3)])
    assert copy_pairs(thumbnails, LIMITS).tolist() == []


def test_a_single_image_has_no_copy():
    assert copy_pairs(noise(1), LIMITS).shape == (0, 2)


def test_pairs_do_not_depend_on_the_size_of_the_blocks(monkeypatch):
    originals = noise(6)
    thumbnails = np.concatenate([originals, originals[:, ::-1], originals[::2], originals[:, :, ::-1]])
    whole = sorted(copy_pairs(thumbnails, LIMITS).tolist())
    assert len(whole) == 3 * 3 + 3 * 6  # three originals come three times, the other three four times
    for block_rows in (1, 4, 5, len(thumbnails)):
        monkeypatch.setattr(copies, "BLOCK_ROWS", block_rows)
        assert sorted(copy_pairs(thumbnails, LIMITS).tolist()) == whole


def groups_of(n, pairs):
    return connected_groups(n, np.array(pairs, np.int64).reshape(-1, 2)).tolist()


@pytest.mark.parametrize(
    ("n", "pairs", "groups"),
    [
        (0, [], []),
        (3, [], [0, 1, 2]),
        (4, [(1, 3)], [0, 1, 2, 1]),
        (4, [(2, 3), (1, 2)], [0, 1, 1, 1]),
        (5, [(3, 4), (0, 1), (1, 4)], [0, 0, 2, 0, 0]),
        (6, [(5, 4), (4, 5), (2, 2), (3, 1)], [0, 1, 2, 1, 4, 4]),
        (6, [(4, 5), (2, 3), (0, 1), (1, 3), (3, 5)], [0, 0, 0, 0, 0, 0]),
    ],
)
def test_groups_of_hand_worked_examples(n, pairs, groups):
    assert groups_of(n, pairs) == groups


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(1, 40))
def test_groups_are_the_connected_components(data, n):
    item = st.integers(0, n - 1)
    pairs = data.draw(st.lists(st.tuples(item, item), max_size=40))
    graph = nx.Graph(pairs)
    graph.add_nodes_from(range(n))
    expected = {item: min(component) for component in nx.connected_components(graph) for item in component}
    assert groups_of(n, pairs) == [expected[item] for item in range(n)]


def test_a_long_chain_is_one_group():
    n = 5000
    chain = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    assert set(connected_groups(n, chain[::-1]).tolist()) == {0}
