import hashlib
import json

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline import split
from pipeline.errors import CracksError, RefusedError
from pipeline.images import INVENTORY_FILE
from pipeline.params import Copies, Fractions, Params, Split
from pipeline.split import (
    SIDES,
    assign,
    check_sides,
    check_validated,
    count_leaks,
    group_images,
    read_inventories,
    side_of,
    summarise,
)

FRACTIONS = Fractions(train=0.5, validation=0.25, test=0.25)
PARAMS = Split(
    train_on=("walls", "decks"),
    fractions=FRACTIONS,
    seed=0,
    copies=Copies(min_similarity=0.97, max_brightness_difference=6),
)
ORIGINALS = np.random.default_rng(0).integers(50, 200, (12, 24, 24)).astype(np.uint8)  # no two are copies
MIRRORINGS = (slice(None), slice(None)), (slice(None, None, -1), slice(None)), (slice(None), slice(None, None, -1))

rows_of_images = st.lists(
    st.fixed_dictionaries(
        {
            "dataset": st.sampled_from(["walls", "decks", "bridges"]),
            "photo": st.sampled_from([None, None, "photo-1", "photo-2", "photo-3"]),
            "original": st.integers(0, len(ORIGINALS) - 1),
            "mirroring": st.integers(0, 2),
            "label": st.sampled_from(["crack", "intact"]),
        }
    ),
    min_size=1,
    max_size=14,
)
whatever_images = settings(max_examples=40, deadline=None, derandomize=True)


def inventory_of(rows):
    """The inventory of images that are each a mirroring of one of ORIGINALS; the same mirroring has the same bytes."""
    inventory = pd.DataFrame(rows)
    drawn = list(zip(inventory["original"], inventory["mirroring"], strict=True))
    return inventory.assign(
        path=[f"{number:05}.jpg" for number in range(len(inventory))],
        row=inventory.groupby("dataset").cumcount(),
        sha256=[hashlib.sha256(f"{original}, {mirroring}".encode()).hexdigest() for original, mirroring in drawn],
        thumbnail=[ORIGINALS[original][MIRRORINGS[mirroring]].tobytes() for original, mirroring in drawn],
    )


def linked_paths(inventory):
    """The sets of paths that must stay together, found another way: components of a graph of images and reasons."""
    graph = nx.Graph()
    for image in inventory.to_dict("records"):
        graph.add_edge(image["path"], ("original", image["original"]))
        if pd.notna(image["photo"]):
            graph.add_edge(image["path"], ("photo", image["dataset"], image["photo"]))
    return [{node for node in nodes if isinstance(node, str)} for nodes in nx.connected_components(graph)]


def image(dataset, original, *, mirroring=0, photo=None, label="crack"):
    return {"dataset": dataset, "photo": photo, "original": original, "mirroring": mirroring, "label": label}


@whatever_images
@given(rows=rows_of_images)
def test_what_belongs_together_is_one_group_and_nothing_else_is(rows):
    inventory = inventory_of(rows)
    groups = assign(inventory, PARAMS).groupby("group")["path"].agg(set)
    assert sorted(map(sorted, groups)) == sorted(map(sorted, linked_paths(inventory)))


@whatever_images
@given(rows=rows_of_images)
def test_no_group_is_on_two_sides_whatever_the_photos_and_copies(rows):
    inventory = inventory_of(rows)
    manifest = assign(inventory, PARAMS).set_index("path")
    for paths in linked_paths(inventory):
        sides = set(manifest.loc[sorted(paths), "split"]) - {"excluded"}
        assert len(sides) <= 1
    assert count_leaks(manifest.reset_index()) == 0


@whatever_images
@given(rows=rows_of_images)
def test_other_data_sets_are_outside_and_what_they_share_is_excluded_from_the_rest(rows):
    inventory = inventory_of(rows)
    manifest = assign(inventory, PARAMS).set_index("path")
    for paths in linked_paths(inventory):
        group = manifest.loc[sorted(paths)]
        is_outside = group["dataset"] == "bridges"
        assert set(group.loc[is_outside, "split"]) <= {"outside"}
        if is_outside.any():
            assert set(group.loc[~is_outside, "split"]) <= {"excluded"}
        else:
            assert set(group["split"]) <= set(SIDES)


@whatever_images
@given(rows=rows_of_images, data=st.data())
def test_the_side_of_a_group_does_not_depend_on_other_groups(rows, data):
    inventory = inventory_of(rows)
    together = linked_paths(inventory)
    kept = set().union(*data.draw(st.lists(st.sampled_from(together), min_size=1)))
    whole = assign(inventory, PARAMS).set_index("path")["split"]
    alone = assign(inventory[inventory["path"].isin(kept)], PARAMS).set_index("path")["split"]
    assert alone.to_dict() == whole[alone.index].to_dict()


@whatever_images
@given(rows=rows_of_images, data=st.data())
def test_the_order_of_the_images_changes_no_side_and_no_group(rows, data):
    inventory = inventory_of(rows)
    order = data.draw(st.permutations(range(len(inventory))))
    columns = ["group", "split"]
    before = assign(inventory, PARAMS).set_index("path")[columns]
    after = assign(inventory.iloc[order], PARAMS).set_index("path")[columns]
    pd.testing.assert_frame_equal(after.sort_index(), before.sort_index())


@whatever_images
@given(rows=rows_of_images, data=st.data())
def test_a_planted_leak_is_counted(rows, data):
    manifest = assign(inventory_of(rows), PARAMS)
    used = manifest[manifest["split"] != "excluded"]
    crowded = used[used.duplicated("group", keep=False)]
    assume(len(crowded))
    victim = data.draw(st.sampled_from(sorted(crowded.index)))
    elsewhere = sorted({*SIDES, "outside"} - {manifest.loc[victim, "split"]})
    manifest.loc[victim, "split"] = data.draw(st.sampled_from(elsewhere))
    assert count_leaks(manifest) >= 1


@pytest.mark.parametrize(
    ("images", "leaks"),
    [
        ([("a", "1", "train"), ("a", "2", "train"), ("b", "3", "test")], 0),
        ([("a", "1", "train"), ("a", "2", "test")], 1),
        ([("a", "1", "train"), ("a", "2", "test"), ("a", "3", "validation")], 1),
        ([("a", "1", "train"), ("a", "2", "test"), ("b", "3", "test"), ("b", "4", "outside")], 2),
        ([("a", "1", "train"), ("b", "1", "test")], 1),  # the same bytes, though grouping missed it
        ([("a", "1", "train"), ("a", "1", "test")], 2),  # the group and the bytes
        ([("a", "1", "excluded"), ("a", "2", "outside")], 0),
    ],
)
def test_leaks_of_hand_worked_examples(images, leaks):
    assert count_leaks(pd.DataFrame(images, columns=["group", "sha256", "split"])) == leaks


def test_byte_identical_plain_images_are_one_group_and_others_are_not():
    rows = [image("walls", number) for number in range(4)]
    plain = [np.full((24, 24), grey, np.uint8).tobytes() for grey in (100, 100, 100, 101)]
    inventory = inventory_of(rows).assign(thumbnail=plain, sha256=["aa", "bb", "aa", "cc"])
    assert group_images(inventory, PARAMS).tolist() == ["aa", "bb", "aa", "cc"]


def test_byte_identical_plain_images_link_the_photos_that_they_are_from():
    rows = [image("walls", number, photo=f"photo-{1 + number // 2}") for number in range(4)]
    inventory = inventory_of(rows)
    plain = np.full((24, 24), 100, np.uint8).tobytes()
    assert group_images(inventory, PARAMS).nunique() == 2
    inventory.loc[[1, 2], "sha256"] = "ff"
    inventory["thumbnail"] = [inventory["thumbnail"][0], plain, plain, inventory["thumbnail"][3]]
    assert group_images(inventory, PARAMS).nunique() == 1


def test_photos_of_the_same_name_in_two_data_sets_are_two_photos():
    rows = [image(dataset, n, photo="photo-1") for n, dataset in enumerate(["walls", "walls", "decks"])]
    first, second, third = group_images(inventory_of(rows), PARAMS)
    assert first == second != third


def test_a_group_is_named_by_its_smallest_hash():
    inventory = inventory_of([image("walls", n, photo="photo-1") for n in range(3)]).assign(sha256=["c", "a", "b"])
    assert group_images(inventory, PARAMS).tolist() == ["a", "a", "a"]


@pytest.mark.parametrize(
    ("group", "seed", "side"),
    [("a", 0, "validation"), ("b", 0, "test"), ("d", 0, "train"), ("a", 1, "train"), ("c", 1, "validation")],
)
def test_sides_that_were_dealt_once_stay_as_they_are(group, seed, side):
    assert side_of(group, FRACTIONS, seed) == side


@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.2), (0.7, 0.15, 0.15), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_the_sides_get_their_fractions_of_the_groups(fractions):
    n = 4000
    expected = dict(zip(SIDES, fractions, strict=True))
    sides = pd.Series([side_of(f"group {number}", Fractions(**expected), seed=0) for number in range(n)])
    for side, fraction in expected.items():
        deviation = (fraction * (1 - fraction) / n) ** 0.5
        assert abs((sides == side).mean() - fraction) <= 4 * deviation


def test_another_seed_deals_otherwise():
    dealt = [[side_of(f"group {number}", FRACTIONS, seed) for number in range(100)] for seed in (0, 1)]
    assert sum(first != second for first, second in zip(*dealt, strict=True)) > 30


def test_the_manifest_keeps_the_images_and_their_order():
    inventory = inventory_of([image("walls", 0), image("bridges", 1, label="intact"), image("walls", 2)])
    manifest = assign(inventory, PARAMS)
    columns = ["path", "dataset", "row", "label", "sha256"]
    pd.testing.assert_frame_equal(manifest[columns], inventory[columns])
    assert list(manifest.columns) == [*columns, "group", "split"]


def test_the_summary_of_a_hand_worked_example():
    rows = [
        image("walls", 0),
        image("walls", 0, mirroring=1),
        image("walls", 1),
        image("decks", 1),
        image("decks", 2),
        image("walls", 3),
        image("bridges", 3, mirroring=2),
        image("bridges", 4),
    ]
    summary = summarise(assign(inventory_of(rows), PARAMS), PARAMS)
    assert summary == {"n_images": 6, "n_groups": 4, "n_copies": 2, "n_excluded": 1, "leaks": 0}


def manifest_with(sides_and_labels):
    return pd.DataFrame(sides_and_labels, columns=["split", "label"])


def test_both_labels_on_every_side_are_enough():
    check_sides(manifest_with([(side, label) for side in SIDES for label in ("crack", "intact")]))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("label", "left"), [("crack", "intact"), ("intact", "crack")])
def test_a_side_that_lacks_a_label_is_refused(side, label, left):
    everything = [(side, label) for side in (*SIDES, "outside") for label in ("crack", "intact")]
    with pytest.raises(CracksError, match=rf"The {side} side has \['{left}'\], it needs both"):
        check_sides(manifest_with([pair for pair in everything if pair != (side, label)]))


def test_an_empty_side_is_refused():
    with pytest.raises(CracksError, match="The test side has no images, it needs both crack and intact"):
        check_sides(manifest_with([(side, label) for side in SIDES[:2] for label in ("crack", "intact")]))


@pytest.fixture
def params():
    drawn = {"source": "walls.zip"}
    return Params.model_construct(
        datasets=dict.fromkeys(["walls", "decks", "bridges"], drawn),
        split=PARAMS,
    )


@pytest.fixture
def places(tmp_path):
    """The paths of the stage, with three data sets ingested and found green: two trained on, one outside."""
    rng = np.random.default_rng(1)
    for name, n in (("walls", 60), ("decks", 20), ("bridges", 10)):
        inventory = pd.DataFrame(
            {
                "path": [f"{number:05}.jpg" for number in range(n)],
                "label": ["crack", "intact"] * (n // 2),
                "photo": [f"photo-{number // 2}" for number in range(n)] if name == "decks" else None,
                "sha256": [hashlib.sha256(f"{name} {number}".encode()).hexdigest() for number in range(n)],
                "thumbnail": [thumbnail.tobytes() for thumbnail in rng.integers(0, 256, (n, 24, 24)).astype(np.uint8)],
            }
        )
        (tmp_path / "datasets" / name).mkdir(parents=True)
        inventory.to_parquet(tmp_path / "datasets" / name / INVENTORY_FILE)
        (tmp_path / "validated").mkdir(exist_ok=True)
        (tmp_path / "validated" / f"{name}.json").write_text('{"success": true}')
    return {
        "datasets": tmp_path / "datasets",
        "validated": tmp_path / "validated",
        "manifest_path": tmp_path / "out" / "manifest.parquet",
        "summary_path": tmp_path / "out" / "split.json",
    }


def test_inventories_are_put_one_below_the_other_and_rows_count_within_each(places):
    inventory = read_inventories(places["datasets"], ["bridges", "decks"])
    assert inventory["dataset"].tolist() == ["bridges"] * 10 + ["decks"] * 20
    assert inventory["row"].tolist() == [*range(10), *range(20)]
    assert inventory.index.tolist() == list(range(30))


def test_a_stage_writes_the_manifest_and_its_summary(places, params):
    split.run(params, **places)
    manifest = pd.read_parquet(places["manifest_path"])
    assert manifest["dataset"].value_counts().to_dict() == {"walls": 60, "decks": 20, "bridges": 10}
    assert set(manifest["split"]) == {*SIDES, "outside"}
    decks = manifest[manifest["dataset"] == "decks"]
    assert (decks["split"].to_numpy()[::2] == decks["split"].to_numpy()[1::2]).all()  # two tiles a photo
    summary = json.loads(places["summary_path"].read_text())
    assert summary == {"n_images": 80, "n_groups": 70, "n_copies": 10, "n_excluded": 0, "leaks": 0}


def test_a_folder_that_no_params_name_does_not_count(places, params):
    (places["datasets"] / "stale").mkdir()
    (places["datasets"] / "stale" / INVENTORY_FILE).write_text("not read")
    split.run(params, **places)
    assert "stale" not in set(pd.read_parquet(places["manifest_path"])["dataset"])


def test_a_split_with_leaks_is_refused_and_nothing_is_written(places, params, monkeypatch):
    monkeypatch.setattr(split, "count_leaks", lambda manifest: 2)
    with pytest.raises(RefusedError, match=r"^2 groups are on two sides"):
        split.run(params, **places)
    assert not places["manifest_path"].parent.exists()


def test_a_split_without_both_labels_on_a_side_is_refused_and_nothing_is_written(places, params):
    no_test_side = Fractions(train=0.5, validation=0.5, test=0)
    params = params.model_copy(update={"split": PARAMS.model_copy(update={"fractions": no_test_side})})
    with pytest.raises(CracksError, match="The test side has no images"):
        split.run(params, **places)
    assert not places["manifest_path"].parent.exists()


@pytest.mark.parametrize("receipt", [None, '{"success": false}'], ids=["missing", "red"])
def test_a_data_set_without_a_green_contract_is_refused_and_nothing_is_written(places, params, receipt):
    path = places["validated"] / "bridges.json"
    path.unlink()
    if receipt:
        path.write_text(receipt)
    with pytest.raises(RefusedError, match=r"Data set bridges has no green contract\. Run `dvc repro"):
        split.run(params, **places)
    assert not places["manifest_path"].parent.exists()


def test_only_the_named_data_sets_need_a_green_contract(places):
    (places["validated"] / "bridges.json").unlink()
    check_validated(places["validated"], ["walls", "decks"])
