import hashlib
import os
import zipfile
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from drawn_data import wall_with_a_hole
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import near_duplicates
from pipeline.data.fingerprints import fingerprint
from pipeline.data.images import EncodedImages, decode, thumbnail
from pipeline.data.near_duplicates import connected_groups, copy_pairs, find_copies
from pipeline.params import Copies

LIMITS = Copies(min_correlation=0.55)
FLIP = np.where(np.arange(32) % 2, -1, 1).astype(np.int8)  # of columns: mirrors left-right


def noise(n, seed=0):
    """Fingerprints of n images that have nothing in common."""
    return np.random.default_rng(seed).normal(0, 25, (n, 32, 32)).clip(-127, 127).astype(np.int8)


def blurred(fingerprints, share, seed=1):
    """Fingerprints that correlate with the given ones by about the root of 1 - share^2."""
    mixed = np.sqrt(1 - share**2) * fingerprints + share * noise(len(fingerprints), seed)
    return np.rint(mixed).clip(-127, 127).astype(np.int8)


def agree(pairs, symmetries):
    """The agreement of pixels that are all alike."""
    return np.ones(len(pairs), np.float32)


def found(fingerprints, contents=None, limits=LIMITS):
    """The pairs with their kinds."""
    contents = [str(row) for row in range(len(fingerprints))] if contents is None else contents
    pairs, doubtful = copy_pairs(fingerprints, contents, limits, agree)
    assert doubtful.empty
    return sorted(pairs[["first", "second", "kind"]].itertuples(index=False, name=None))


def fingerprints_of(images):
    return np.stack([fingerprint(thumbnail(image)) for image in images])


def groups_among(fingerprints, contents=None):
    contents = [str(row) for row in range(len(fingerprints))] if contents is None else contents
    pairs, _ = copy_pairs(fingerprints, contents, LIMITS, agree)
    return connected_groups(len(fingerprints), pairs[["first", "second"]].to_numpy())


@pytest.fixture
def n_compared(monkeypatch):
    """Fills with the number of pairs that each call of `compare` gets."""
    counts = []
    compare = near_duplicates.compare

    def counted(fingerprints, pairs):
        counts.append(len(pairs))
        return compare(fingerprints, pairs)

    monkeypatch.setattr(near_duplicates, "compare", counted)
    return counts


def test_each_pair_comes_once_the_earlier_image_first_with_its_kind():
    first, second = noise(2)
    images = np.stack([first, second, first * FLIP, second, first, second * FLIP[:, None]])
    assert found(images, ["a", "b", "c", "b", "d", "e"]) == [
        (0, 2, "mirrored left-right"),
        (0, 4, "saved again"),
        (1, 3, "identical"),
        (1, 5, "mirrored up-down"),
        (2, 4, "mirrored left-right"),
    ]


def test_pairs_are_typed_as_promised():
    pairs, _ = copy_pairs(noise(1).repeat(3, axis=0), ["a", "b", "a"], LIMITS, agree)
    assert pairs.dtypes.astype(str).to_dict() == {
        "first": "int64",
        "second": "int64",
        "kind": "str",
        "agreement": "float32",
    }
    assert pairs[["first", "second"]].to_numpy().tolist() == [[0, 2], [0, 1]]
    assert pairs["kind"].tolist() == ["identical", "saved again"]
    assert pairs["agreement"].tolist() == [1, 1]


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_images_with_nothing_in_common_are_no_copies(n):
    pairs, _ = copy_pairs(noise(n), [str(row) for row in range(n)], LIMITS, agree)
    assert pairs.shape == (0, 4)
    assert pairs["first"].dtype == np.int64


@pytest.mark.parametrize("quality", [90, 50])
def test_tiles_that_were_saved_again_are_found_and_different_ones_are_not(draw_tile, encode, quality):
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 10, (30, 96, 96, 1))
    tiles = [
        (draw_tile(seed, cracked=seed % 2 == 0, size_px=96) + grain[seed]).clip(0, 255).astype(np.uint8)
        for seed in range(30)
    ]
    saved = [decode(encode(tile, quality=quality)) for tile in tiles]
    assert found(fingerprints_of([*tiles, *saved])) == [(n, n + 30, "saved again") for n in range(30)]


@pytest.mark.parametrize(("least", "n_pairs"), [(0.85, 0), (0.75, 1)])
def test_copies_correlate_at_least_as_much_as_the_limit(least, n_pairs):
    original = noise(1)
    both = np.concatenate([original, blurred(original, 0.6)])  # they correlate by 0.8
    assert len(found(both, limits=Copies(min_correlation=least))) == n_pairs


def test_plain_images_are_copies_only_where_their_bytes_are_equal(n_compared):
    images = np.concatenate([np.zeros((4, 32, 32), np.int8), noise(2)])
    assert found(images, ["a", "b", "a", "c", "d", "e"]) == [(0, 2, "identical")]
    assert n_compared == [1]  # the two that are not plain


def measured(table):
    """Agreements by pair; of pairs that are not listed, 1."""
    return lambda pairs, symmetries: np.array([table.get(tuple(pair), 1) for pair in pairs.tolist()], np.float32)


@pytest.mark.parametrize(
    ("agreement", "n_copies", "n_doubtful"), [(0.14, 0, 0), (0.15, 0, 1), (0.24, 0, 1), (0.25, 1, 0)]
)
def test_pixels_decide_about_images_of_similar_fingerprints(agreement, n_copies, n_doubtful):
    both = noise(1).repeat(2, axis=0)
    pairs, doubtful = copy_pairs(both, ["a", "b"], LIMITS, measured({(0, 1): agreement}))
    assert (len(pairs), len(doubtful)) == (n_copies, n_doubtful)
    assert [*pairs["agreement"], *doubtful["agreement"]] == pytest.approx([agreement] * (n_copies + n_doubtful))


def test_a_pair_that_a_third_image_links_is_not_doubtful():
    pairs, doubtful = copy_pairs(noise(1).repeat(3, axis=0), ["a", "b", "c"], LIMITS, measured({(0, 2): 0.2}))
    assert pairs[["first", "second"]].to_numpy().tolist() == [[0, 1], [1, 2]]
    assert doubtful.empty


def inventory_of(contents, **columns):
    """An inventory of images and these."""
    images = EncodedImages(contents, np.array([[64, 64]] * len(contents)))
    prints = [fingerprint(thumbnail(images.pixels(row))).tobytes() for row in range(len(contents))]
    sha256 = [hashlib.sha256(content).hexdigest() for content in contents]
    return pd.DataFrame({"sha256": sha256, "fingerprint": prints, "photo": None} | columns), images


def numbers(tables):
    return [table[["first", "second"]].to_numpy().tolist() for table in tables]


def test_two_walls_with_a_hole_at_the_same_place_are_no_copies_and_their_saved_copies_are(encode):
    walls = [wall_with_a_hole(seed) for seed in range(4)]
    contents = [*walls, *(encode(np.fliplr(decode(wall)), quality=70) for wall in walls)]
    assert numbers(find_copies(*inventory_of(contents), LIMITS)) == [[[n, n + 4] for n in range(4)], []]


@pytest.mark.parametrize(
    ("photos", "datasets", "is_copy"),
    [
        ([None, None], ["walls", "walls"], True),
        (["1", None], ["walls", "walls"], True),
        (["1", "2"], ["walls", "walls"], False),
        (["1", "1"], ["walls", "walls"], False),
        (["1", "2"], ["walls", "decks"], True),
    ],
)
def test_tiles_of_known_photos_of_a_data_set_must_agree_more(photos, datasets, is_copy):
    contents = [wall_with_a_hole(seed, shared=0.55) for seed in (1, 2)]  # they agree by 0.31
    found = numbers(find_copies(*inventory_of(contents, photo=photos, dataset=datasets), LIMITS))
    assert found == ([[[0, 1]], []] if is_copy else [[], [[0, 1]]])


def test_a_tile_that_was_filed_under_two_photos_is_a_copy(encode):
    wall = wall_with_a_hole(1)
    contents = [wall, encode(decode(wall), quality=70)]
    assert numbers(find_copies(*inventory_of(contents, photo=["1", "2"]), LIMITS)) == [[[0, 1]], []]


@pytest.mark.parametrize("shared", [0.45, 0.9], ids=["doubtful", "copies"])
def test_pairs_that_a_person_lists_are_no_copies(shared):
    contents = [wall_with_a_hole(seed, shared=shared) for seed in (1, 2)]
    inventory, images = inventory_of(contents)
    assert sorted(numbers(find_copies(inventory, images, LIMITS))) == [[], [[0, 1]]]
    second, first = inventory["sha256"].str[:16]
    limits = Copies(min_correlation=0.55, not_copies=((first, second),))
    assert numbers(find_copies(inventory, images, limits)) == [[], []]


def test_an_image_between_two_that_differ_links_them():
    first, last = noise(2)
    middle = ((first.astype(int) + last) / np.sqrt(2)).astype(np.int8)  # correlates with both by 0.7
    images = np.stack([first, middle, last])
    assert [pair[:2] for pair in found(images)] == [(0, 1), (1, 2)]
    assert groups_among(images).tolist() == [0, 0, 0]


@pytest.mark.parametrize("n_variants", [1, 10, 300])
def test_many_copies_are_one_group_and_take_little_time(n_compared, n_variants):
    # variants of one image, each 300 / n_variants times with other bytes, which crowd out the other variants
    variants = blurred(noise(1).repeat(n_variants, axis=0), 0.3)
    images = np.concatenate([noise(200, seed=2), variants.repeat(300 // n_variants, axis=0)])
    groups = groups_among(images)
    assert groups.tolist() == [*range(200), *[200] * 300]
    assert sum(n_compared) < 1.1 * near_duplicates.N_NEIGHBOURS * len(images)


def test_identical_images_are_compared_once(n_compared):
    images = noise(2).repeat(300, axis=0)
    assert groups_among(images, ["a"] * 300 + ["b"] * 300).tolist() == [0] * 300 + [300] * 300
    assert n_compared == [1]


def test_copies_are_found_among_more_images_than_are_compared_one_by_one():
    originals = noise(near_duplicates.MAX_FLAT_IMAGES)
    copied = blurred(originals[:800], 0.3)  # they correlate by 0.95
    copied[:200] = copied[:200] * FLIP
    copied[200:400] = copied[200:400].transpose(0, 2, 1)
    images = np.concatenate([originals, copied])
    pairs = found(images)
    assert {(first + near_duplicates.MAX_FLAT_IMAGES, second) for first, second, _ in pairs} == {
        (second, second) for _, second, _ in pairs
    }  # no pair but of an original and its own copy
    assert len(pairs) > 0.99 * 800
    assert found(images) == pairs


REAL = pytest.mark.skipif(
    "CRACKS_REAL_DATA" not in os.environ, reason="CRACKS_REAL_DATA names no folder of real images"
)


@REAL
def test_no_two_walls_of_sdnet_are_copies_or_doubtful():
    with zipfile.ZipFile(Path(os.environ["CRACKS_REAL_DATA"]) / "sdnet-more.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith("Walls/") and name.endswith(".jpg")]
        inventory, images = inventory_of([archive.read(name) for name in names])
    assert numbers(find_copies(inventory, images, LIMITS)) == [[], []]  # even if their photos were not known


@REAL
def test_tiles_of_real_photos_are_not_copies_and_their_saved_copies_are(encode):
    with zipfile.ZipFile(Path(os.environ["CRACKS_REAL_DATA"]) / "sdnet-subset.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        tiles = [decode(archive.read(name)) for name in names[::4]]
    saved = [decode(encode(np.rot90(tile).copy(), quality=50)) for tile in tiles[::4]]
    pairs = found(fingerprints_of([*tiles, *saved]))
    assert pairs == [(4 * n, len(tiles) + n, "turned by 90 degrees") for n in range(len(saved))]


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
