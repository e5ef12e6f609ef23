import networkx as nx
import numpy as np
import pandas as pd
import pytest
from drawn_data import NO_PAIRS, pairs_of, params_for
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.data.group_split import (
    EXCLUDED,
    MANIFEST_COLUMNS,
    SIDES,
    arrival_order,
    assign_sides,
    build_manifest,
    links_between,
)
from pipeline.errors import CracksError
from pipeline.params import Copies, Fractions, Split
from pipeline.split import summarise, with_checks

TRAIN_ON = ("walls", "decks")
FRACTIONS = Fractions(train=0.5, validation=0.25, test=0.25)


def split_of(fractions=FRACTIONS, seed=0, photo_sides=None):
    """The section `split` with these shares, and photos assigned to sides."""
    photos = {side: tuple(photo for photo, its in (photo_sides or {}).items() if its == side) for side in SIDES}
    return Split(train_on=TRAIN_ON, fractions=fractions, seed=seed, copies=Copies(min_correlation=0.55), photos=photos)


SETTINGS = split_of()
HALVES = split_of(Fractions(train=0.5, validation=0, test=0.5))
whatever_images = settings(max_examples=20, deadline=None, derandomize=True)


def images(batches, fixed=None, photos=None, strata=None, sha256=None):
    """Images without links; each argument has a value per image."""
    n = len(batches)
    return pd.DataFrame(
        {
            "batch": batches,
            "sha256": sha256 or [f"{number:03}" for number in range(n)],
            "stratum": strata or ["walls//crack"] * n,
            "photo": pd.Series(photos or [None] * n, dtype=object),
            "fixed_side": pd.Series(fixed or [None] * n, dtype=object),
        }
    )


def links(*pairs):
    return np.array(pairs, np.int64).reshape(-1, 2)


def seed_where(wanted, rows, pairs=(), fractions=HALVES.fractions):
    """Settings whose seed puts the images at some positions on the wanted sides."""
    for seed in range(500):
        settings = split_of(fractions, seed, {})
        sides = assign_sides(rows, links(*pairs), settings)["side"]
        if all(sides[position] == side for position, side in wanted.items()):
            return settings
    raise AssertionError("no seed gives these sides")


@st.composite
def any_images(draw, fixed=(None, "external", "train")):
    """Images in up to four batches, links of any kind; external images only in the first batch."""
    n = draw(st.integers(1, 16))
    batches = np.sort(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    drawn_sides = [draw(st.sampled_from(fixed)) for _ in range(n)]
    sides = [None if side == "external" and batch else side for side, batch in zip(drawn_sides, batches, strict=True)]
    rows = images(
        batches,
        fixed=sides,
        photos=draw(st.lists(st.sampled_from([None, "walls/1", "walls/2"]), min_size=n, max_size=n)),
        strata=draw(st.lists(st.sampled_from(["walls//crack", "walls//intact"]), min_size=n, max_size=n)),
        sha256=draw(st.permutations([f"{number:03}" for number in range(n)])),
    )
    item = st.integers(0, n - 1)
    return rows, links(*draw(st.lists(st.tuples(item, item), max_size=12)))


split_settings = st.builds(
    split_of,
    st.just(FRACTIONS),
    st.integers(0, 5),
    st.sampled_from([{}, {"walls/1": "train"}]),
)


@whatever_images
@given(drawn=any_images(), settings=split_settings)
def test_adding_a_batch_never_moves_an_image(drawn, settings):
    rows, pairs = drawn
    whole = assign_sides(rows, pairs, settings)
    for batch in rows["batch"].unique():
        so_far = rows[rows["batch"] <= batch]
        known = pairs[(pairs < len(so_far)).all(axis=1)]
        pd.testing.assert_frame_equal(assign_sides(so_far, known, settings), whole.loc[so_far.index])


@whatever_images
@given(drawn=any_images(), settings=split_settings)
def test_no_two_linked_images_that_are_used_are_on_two_sides(drawn, settings):
    rows, pairs = drawn
    sides = assign_sides(rows, pairs, settings)["side"]
    for first, second in pairs:
        assert len({sides[first], sides[second]} - {EXCLUDED}) <= 1


@whatever_images
@given(drawn=any_images(), settings=split_settings)
def test_used_images_that_used_images_link_are_on_one_side_and_so_is_every_group(drawn, settings):
    rows, pairs = drawn
    assigned = assign_sides(rows, pairs, settings)
    used = assigned[assigned["side"] != EXCLUDED]
    graph = nx.Graph([pair for pair in pairs.tolist() if set(pair) <= set(used.index)])
    for component in nx.connected_components(graph):
        assert used.loc[sorted(component), "side"].nunique() == 1
    assert (used.groupby("group")["side"].nunique() == 1).all()


@whatever_images
@given(drawn=any_images(), settings=split_settings)
def test_every_image_has_a_side_and_a_group_that_is_named_by_an_image(drawn, settings):
    rows, pairs = drawn
    assigned = assign_sides(rows, pairs, settings)
    assert set(assigned["side"]) <= {*SIDES, "external", EXCLUDED}
    assert set(assigned["group"]) <= set(rows["sha256"])


@whatever_images
@given(drawn=any_images(), settings=split_settings)
def test_fixed_images_keep_their_side_or_are_excluded_and_no_other_is_external(drawn, settings):
    rows, pairs = drawn
    sides = assign_sides(rows, pairs, settings)["side"]
    for side, fixed in zip(sides, rows["fixed_side"], strict=True):
        if fixed is None:
            assert side != "external"
        else:
            assert side in (fixed, EXCLUDED)
    assert (sides[rows["fixed_side"] == "external"] == "external").all()


@whatever_images
@given(drawn=any_images(), settings=split_settings, data=st.data())
def test_the_order_of_the_images_of_a_batch_changes_nothing(drawn, settings, data):
    rows, pairs = drawn
    order = np.array(data.draw(st.permutations(range(len(rows)))), np.int64)
    order = order[np.argsort(rows["batch"].to_numpy()[order], kind="stable")]
    shuffled = rows.iloc[order].reset_index(drop=True)
    assigned = assign_sides(shuffled, np.argsort(order)[pairs], settings)
    expected = assign_sides(rows, pairs, settings).iloc[order].reset_index(drop=True)
    pd.testing.assert_frame_equal(assigned, expected)


def test_a_new_image_that_links_two_groups_of_one_side_takes_the_smaller_name_in_any_order():
    everything_train = split_of(Fractions(train=1, validation=0, test=0), 0, {})
    for names in (["a", "b", "c"], ["b", "a", "c"]):
        assigned = assign_sides(images([0, 0, 1], sha256=names), links((0, 2), (1, 2)), everything_train)
        assert assigned.loc[2].tolist() == ["a", "train"]


def test_a_new_image_that_links_two_sides_is_excluded_and_moves_neither():
    rows, pairs = images([0, 0, 1]), [(0, 2), (1, 2)]
    settings = seed_where({0: "train", 1: "test"}, rows, pairs)
    assert assign_sides(rows, links(*pairs), settings)["side"].tolist() == ["train", "test", EXCLUDED]


@pytest.mark.parametrize("first", ["train", "test"])
def test_a_new_image_joins_the_side_of_the_image_that_it_is_linked_to(first):
    rows = images([0, 1, 2])
    for pairs in ([(0, 1), (0, 2)], [(0, 1), (1, 2)]):
        assigned = assign_sides(rows, links(*pairs), seed_where({0: first}, rows))
        assert assigned["side"].tolist() == [first] * 3
        assert assigned["group"].tolist() == ["000"] * 3


def test_an_excluded_image_does_not_link_others():
    rows, pairs = images([0, 0, 1, 2, 2, 2]), [(0, 2), (1, 2), (0, 3), (1, 4), (2, 5)]
    settings = seed_where({0: "train", 1: "test"}, rows, pairs)
    sides = assign_sides(rows, links(*pairs), settings)["side"].tolist()
    assert sides == ["train", "test", EXCLUDED, "train", "test", EXCLUDED]  # a copy of an excluded one is, too


def test_an_image_linked_to_an_external_one_is_excluded_and_the_external_one_stays():
    rows = images([0, 0, 1, 1, 2], fixed=["external", "external", None, None, None])
    sides = assign_sides(rows, links((0, 2), (2, 4)), SETTINGS)["side"]
    assert sides[[0, 1, 2, 4]].tolist() == ["external", "external", EXCLUDED, EXCLUDED]
    assert sides[3] in SIDES


def test_a_reviewed_image_creates_a_group_in_train_or_is_excluded_if_linked_to_test():
    rows = images([0, 1, 1, 1], fixed=[None, "train", "train", None])
    pairs = [(0, 1), (2, 3)]
    settings = seed_where({0: "test"}, rows, pairs)
    assert assign_sides(rows, links(*pairs), settings)["side"].tolist() == ["test", EXCLUDED, "train", "train"]


@pytest.mark.parametrize("photos", [["walls/1", "walls/1"], [None, "walls/1"]])
def test_a_reviewed_image_of_a_photo_assigned_to_test_is_excluded_and_the_photo_is_tested_on(photos):
    rows = images([0, 0], fixed=["train", None], photos=photos)
    sides = assign_sides(rows, links((0, 1)), split_of(FRACTIONS, 0, {"walls/1": "test"}))["side"]
    assert sides.tolist() == [EXCLUDED, "test"]


@pytest.mark.parametrize("side", SIDES)
def test_a_photo_assigned_to_a_side_is_on_it_with_its_copies(side):
    rows = images([1] * 8, photos=["walls/1"] * 3 + [None] * 5)
    assigned_side = split_of(FRACTIONS, 0, {"walls/1": side})
    sides = assign_sides(rows, links((0, 1), (1, 2), (2, 3)), assigned_side)["side"]
    assert set(sides[:4]) == {side}
    free = assign_sides(rows, links((0, 1), (1, 2), (2, 3)), SETTINGS)["side"]
    assert sides[4:].tolist() == free[4:].tolist()  # no other image is moved


def test_an_assigned_photo_that_came_after_its_copy_on_another_side_is_excluded():
    rows = images([0, 1], photos=[None, "walls/1"])
    for seed in range(20):
        first, second = assign_sides(rows, links((0, 1)), split_of(HALVES.fractions, seed, {"walls/1": "test"}))["side"]
        assert second == ("test" if first == "test" else EXCLUDED)


def test_linked_photos_that_are_assigned_to_different_sides_are_an_error():
    rows = images([0, 0], photos=["walls/1", "walls/2"])
    contradictory = split_of(FRACTIONS, 0, {"walls/1": "train", "walls/2": "test"})
    with pytest.raises(CracksError, match=r"assigned to different sides: walls/1, walls/2\. Assign them to one side"):
        assign_sides(rows, links((0, 1)), contradictory)
    assert assign_sides(rows, links(), contradictory)["side"].tolist() == ["train", "test"]


shares = st.tuples(st.integers(0, 10), st.integers(0, 10)).filter(lambda pair: sum(pair) <= 10)


@whatever_images
@given(n=st.integers(1, 120), tenths=shares, seed=st.integers(0, 1000))
def test_images_without_links_are_assigned_within_one_image_of_the_fractions(n, tenths, seed):
    train, validation = (part / 10 for part in tenths)
    fractions = {"train": train, "validation": validation, "test": 1 - train - validation}
    assume(fractions["test"] >= 0)
    sides = assign_sides(images([0] * n), links(), split_of(Fractions(**fractions), seed, {}))["side"]
    for side, fraction in fractions.items():
        assert abs((sides == side).sum() - fraction * n) < 1 + 1e-9


@whatever_images
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), seed=st.integers(0, 1000))
def test_groups_are_assigned_within_the_size_of_the_largest_of_the_fractions(sizes, seed):
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    chain = np.flatnonzero(np.diff(group_of) == 0)
    pairs = np.stack([chain, chain + 1], axis=1)
    assigned = assign_sides(images([0] * sum(sizes)), pairs, split_of(FRACTIONS, seed, {}))
    assert assigned["group"].nunique() == len(sizes)
    for side, fraction in FRACTIONS.model_dump().items():
        assert abs((assigned["side"] == side).sum() - fraction * sum(sizes)) <= max(sizes) + 1e-9


def test_every_stratum_gets_its_shares():
    n = 40
    rows = images([0] * 2 * n, strata=["walls//crack", "walls//intact"] * n)
    sides = assign_sides(rows, links(), SETTINGS)["side"]
    for _, found in sides.groupby(rows["stratum"]):
        assert found.value_counts().to_dict() == pytest.approx({"train": 20, "validation": 10, "test": 10}, abs=1)


def test_single_image_batches_are_on_each_side_as_often_as_the_fractions_say():
    n = 120
    rows = images([0])
    sides = pd.Series([assign_sides(rows, links(), split_of(FRACTIONS, seed, {}))["side"][0] for seed in range(n)])
    for side, fraction in FRACTIONS.model_dump().items():
        assert abs((sides == side).mean() - fraction) < 4 * (fraction * (1 - fraction) / n) ** 0.5


def test_images_that_arrive_one_by_one_meet_the_fractions_too():
    n = 80
    sides = assign_sides(images(list(range(n))), links(), SETTINGS)["side"]
    for side, fraction in FRACTIONS.model_dump().items():
        assert abs((sides == side).mean() - fraction) < 4 * (fraction * (1 - fraction) / n) ** 0.5


def image(dataset="walls", *, batch="", label="crack", photo=None):
    return {
        "dataset": dataset,
        "batch": batch,
        "label": label,
        "first_label": label,
        "photo": photo,
        "slice": "",
        "is_review": False,
        "disputed": None,
    }


def images_of(rows):
    """Inventories one below the other, of images that all have other bytes; the same path in every data set."""
    images = pd.DataFrame(rows)
    row = images.groupby("dataset").cumcount()
    sha256 = [f"{number:03}" for number in range(len(images))]
    return images.assign(row=row, path=[f"{number:03}.jpg" for number in row], sha256=sha256)


def split_params(**changes):
    return params_for(["walls", "decks", "bridges"], train_on=list(TRAIN_ON), **changes).split


def test_external_test_sets_are_the_oldest_then_the_batches_of_data_sets_alternate():
    names = ["bridges", "bridges", "decks", "decks", "walls", "walls", "walls"]
    batches = ["", "b.zip", "", "late.zip", "1.zip", "2.zip", "3.zip"]
    images = images_of([image(name, batch=batch) for name, batch in zip(names, batches, strict=True)])
    assert arrival_order(images, TRAIN_ON).tolist() == [0, 0, 1, 2, 1, 2, 3]


def test_copies_are_linked_and_so_are_tiles_of_a_photo_within_a_data_set():
    rows = [
        image(photo="1"),
        image(photo="2"),
        image(photo="1"),
        image("decks", photo="1"),
        image(),
        image(),
        image(photo="1"),
    ]
    assert sorted(links_between(images_of(rows), pairs_of((4, 5))).tolist()) == [[0, 2], [2, 6], [4, 5]]


def test_without_photos_and_copies_nothing_is_linked():
    assert links_between(images_of([image(), image()]), NO_PAIRS).shape == (0, 2)


def test_the_manifest_keeps_the_images_in_their_order():
    images = images_of([image("bridges"), image("decks", label="intact"), image("walls", photo="1")])
    manifest = build_manifest(images, NO_PAIRS, split_params())
    pd.testing.assert_frame_equal(manifest[MANIFEST_COLUMNS], images[MANIFEST_COLUMNS])
    assert list(manifest) == [*MANIFEST_COLUMNS, "group", "split"]
    assert manifest["split"][0] == "external"
    assert set(manifest["split"][1:]) <= set(SIDES)


def test_copies_and_tiles_of_a_photo_share_a_group_and_a_side():
    rows = [image(photo="1"), image(photo="1"), *[image() for _ in range(10)]]
    manifest = build_manifest(images_of(rows), pairs_of((1, 2)), split_params())
    assert manifest["group"].tolist()[:4] == ["000"] * 3 + ["003"]
    assert manifest["split"][:3].nunique() == 1


@st.composite
def batches_and_reviews(draw):
    """Images of two ordinary batches and of a review batch after them; copies and photos of any kind."""
    counts = draw(st.tuples(st.integers(1, 8), st.integers(0, 4), st.integers(1, 6)))
    rows = [
        image(
            batch=f"{number}.zip",
            label=draw(st.sampled_from(["crack", "intact"])),
            photo=draw(st.sampled_from([None, "1", "2"])),
        )
        | {"is_review": number == 2}
        for number, n in enumerate(counts)
        for _ in range(n)
    ]
    item = st.integers(0, len(rows) - 1)
    copies = {tuple(sorted(pair)) for pair in draw(st.lists(st.tuples(item, item), max_size=8)) if len({*pair}) == 2}
    corrected = draw(st.sets(st.integers(0, sum(counts[:2]) - 1)))
    disputed = draw(st.sets(item, max_size=3))
    return images_of(rows), pairs_of(*sorted(copies)), sorted(corrected), sorted(disputed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=batches_and_reviews(), seed=st.integers(0, 5), assigned_side=st.sampled_from(["train", "test", None]))
def test_reviews_are_in_training_or_excluded_and_move_and_correct_no_image_onto_another_side(
    drawn, seed, assigned_side
):
    images, pairs, corrected, disputed = drawn
    params = split_params(seed=seed, photos={assigned_side: ["walls/1"]} if assigned_side else {})
    older = images[~images["is_review"]]
    before = build_manifest(older, pairs[pairs["second"] < len(older)], params)
    other = {"crack": "intact", "intact": "crack"}
    images.loc[corrected, "label"] = images.loc[corrected, "first_label"].map(other)
    images.loc[disputed, "disputed"] = "ann: crack, bob: intact"

    manifest = build_manifest(images, pairs, params)

    assert set(manifest.loc[disputed, "split"]) <= {"excluded"}
    undisputed = older.index.difference(disputed)
    assert manifest.loc[undisputed, ["group", "split"]].equals(before.loc[undisputed, ["group", "split"]])
    assert set(manifest.loc[images["is_review"], "split"]) <= {"train", "excluded"}
    assert with_checks(manifest, pairs, NO_PAIRS, TRAIN_ON)["is_leak"].sum() == 0


def test_a_review_linked_to_a_test_image_is_excluded_and_counted():
    images = images_of(
        [image(), image(batch="2.zip") | {"is_review": True}, image(batch="2.zip") | {"is_review": True}]
    )
    params = split_params(fractions={"train": 0, "validation": 0, "test": 1})
    manifest = build_manifest(images, pairs_of((0, 1)), params)
    assert manifest["split"].tolist() == ["test", "excluded", "train"]
    assert summarise(with_checks(manifest, pairs_of((0, 1)), NO_PAIRS, TRAIN_ON), NO_PAIRS, TRAIN_ON)["n_excluded"] == 1


def test_a_review_in_an_external_test_set_stays_external():
    images = images_of([image("bridges") | {"is_review": True}, image()])
    assert build_manifest(images, NO_PAIRS, split_params())["split"][0] == "external"


def test_an_image_shared_with_an_external_test_set_is_excluded_and_reported():
    images = images_of([image("bridges"), image("bridges"), image(), image()])
    pairs = pairs_of((0, 2))
    found = with_checks(build_manifest(images, pairs, split_params()), pairs, NO_PAIRS, TRAIN_ON)
    assert found["split"].tolist()[:3] == ["external", "external", "excluded"]
    assert found["split"][3] in SIDES
    assert found["is_shared"].tolist() == [1, 0, 1, 0]
    assert (found["split"] == EXCLUDED).tolist() == [False, False, True, False]
    assert found["is_leak"].tolist() == [0] * 4  # it was kept out


def test_a_held_out_external_photo_is_in_validation_and_its_copies_are_not_trained_on():
    images = images_of([image("bridges", photo="1"), image("bridges", photo="1"), image("bridges", photo="2"), image()])
    pairs = pairs_of((0, 3))
    manifest = build_manifest(images, pairs, split_params(photos={"validation": ["bridges/1"]}))
    assert manifest["split"].tolist() == ["validation", "validation", "external", "excluded"]
    assert with_checks(manifest, pairs, NO_PAIRS, TRAIN_ON)["is_leak"].sum() == 0


def test_a_held_out_photo_with_a_copy_in_another_external_photo_is_a_leak():
    images = images_of([image("bridges", photo="1"), image("bridges", photo="2")])
    manifest = build_manifest(images, pairs_of((0, 1)), split_params(photos={"validation": ["bridges/1"]}))
    assert with_checks(manifest, pairs_of((0, 1)), NO_PAIRS, TRAIN_ON)["is_leak"].tolist() == [1, 1]


@pytest.mark.parametrize("side", SIDES)
def test_a_photo_of_a_data_set_trained_on_is_on_the_side_it_is_assigned_to(side):
    rows = [image(photo="1"), image(photo="1"), image(photo="2")]
    manifest = build_manifest(images_of(rows), NO_PAIRS, split_params(photos={side: ["walls/1"]}))
    assert manifest["split"].tolist()[:2] == [side, side]
