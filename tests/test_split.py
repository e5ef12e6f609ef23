import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from drawn_data import changed, drawn_files, ingest_files, params_for
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import Page

from pipeline import split
from pipeline.contract import check, split_rules
from pipeline.errors import CracksError, RefusedError
from pipeline.images import INVENTORY_FILE
from pipeline.split import SIDES, age, assign, check_sides, links_between, read_inventories, summarise, with_checks
from pipeline.stage import run_main

NO_PAIRS = pd.DataFrame({"first": [], "second": []}, dtype=np.int64)
TRAIN_ON = ("walls", "decks")


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


def pairs_of(*pairs):
    return pd.DataFrame(pairs, columns=["first", "second"], dtype=np.int64)


def split_params(**changes):
    return params_for(["walls", "decks", "bridges"], train_on=list(TRAIN_ON), **changes).split


def manifest_of(rows):
    """A manifest from (dataset, photo, label, group, sha256, split)."""
    columns = ["dataset", "photo", "label", "group", "sha256", "split"]
    manifest = pd.DataFrame(rows, columns=columns)
    manifest["photo"] = manifest["photo"].astype(object)
    return manifest.assign(path=[f"{n}.jpg" for n in range(len(manifest))], slice="", batch="", row=0)


def checked(rows, pairs=NO_PAIRS):
    return with_checks(manifest_of(rows), pairs, TRAIN_ON)


def test_outside_sets_are_the_oldest_then_the_batches_of_each_data_set_take_turns():
    names = ["bridges", "bridges", "decks", "decks", "walls", "walls", "walls"]
    batches = ["", "b.zip", "", "late.zip", "1.zip", "2.zip", "3.zip"]
    images = images_of([image(name, batch=batch) for name, batch in zip(names, batches, strict=True)])
    assert age(images, TRAIN_ON).tolist() == [0, 0, 1, 2, 1, 2, 3]


def test_copies_are_linked_and_the_tiles_of_a_photo_in_its_data_set_alone():
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
    manifest = assign(images, NO_PAIRS, split_params())
    pd.testing.assert_frame_equal(manifest[split.COLUMNS], images[split.COLUMNS])
    assert list(manifest) == [*split.COLUMNS, "group", "split"]
    assert manifest["split"][0] == "outside"
    assert set(manifest["split"][1:]) <= set(SIDES)


def test_copies_and_tiles_of_a_photo_share_a_group_and_a_side():
    rows = [image(photo="1"), image(photo="1"), *[image() for _ in range(10)]]
    manifest = assign(images_of(rows), pairs_of((1, 2)), split_params())
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
@given(drawn=batches_and_reviews(), seed=st.integers(0, 5), given_side=st.sampled_from(["train", "test", None]))
def test_reviews_are_in_training_or_excluded_and_move_and_correct_no_image_onto_another_side(drawn, seed, given_side):
    images, pairs, corrected, disputed = drawn
    params = split_params(seed=seed, photos={given_side: ["walls/1"]} if given_side else {})
    older = images[~images["is_review"]]
    before = assign(older, pairs[pairs["second"] < len(older)], params)
    other = {"crack": "intact", "intact": "crack"}
    images.loc[corrected, "label"] = images.loc[corrected, "first_label"].map(other)
    images.loc[disputed, "disputed"] = "ann: crack, bob: intact"

    manifest = assign(images, pairs, params)

    assert set(manifest.loc[disputed, "split"]) <= {"excluded"}
    undisputed = older.index.difference(disputed)
    assert manifest.loc[undisputed, ["group", "split"]].equals(before.loc[undisputed, ["group", "split"]])
    assert set(manifest.loc[images["is_review"], "split"]) <= {"train", "excluded"}
    assert with_checks(manifest, pairs, TRAIN_ON)["is_leak"].sum() == 0


def test_a_review_beside_an_image_that_is_tested_on_is_excluded_and_counted():
    images = images_of(
        [image(), image(batch="2.zip") | {"is_review": True}, image(batch="2.zip") | {"is_review": True}]
    )
    params = split_params(fractions={"train": 0, "validation": 0, "test": 1})
    manifest = assign(images, pairs_of((0, 1)), params)
    assert manifest["split"].tolist() == ["test", "excluded", "train"]
    assert summarise(with_checks(manifest, pairs_of((0, 1)), TRAIN_ON), TRAIN_ON)["n_excluded"] == 1


def test_a_review_in_an_outside_set_stays_outside():
    images = images_of([image("bridges") | {"is_review": True}, image()])
    assert assign(images, NO_PAIRS, split_params())["split"][0] == "outside"


def test_what_an_outside_set_shares_is_excluded_from_training_and_found():
    images = images_of([image("bridges"), image("bridges"), image(), image()])
    pairs = pairs_of((0, 2))
    found = with_checks(assign(images, pairs, split_params()), pairs, TRAIN_ON)
    assert found["split"].tolist()[:3] == ["outside", "outside", "excluded"]
    assert found["split"][3] in SIDES
    assert found["is_shared"].tolist() == [1, 0, 1, 0]
    assert found["is_excluded"].tolist() == [0, 0, 1, 0]
    assert found["is_leak"].tolist() == [0] * 4  # it was kept out


def test_a_photo_that_an_outside_set_lends_goes_to_validation_and_keeps_its_copies_out_of_training():
    images = images_of([image("bridges", photo="1"), image("bridges", photo="1"), image("bridges", photo="2"), image()])
    pairs = pairs_of((0, 3))
    manifest = assign(images, pairs, split_params(photos={"validation": ["bridges/1"]}))
    assert manifest["split"].tolist() == ["validation", "validation", "outside", "excluded"]
    assert with_checks(manifest, pairs, TRAIN_ON)["is_leak"].sum() == 0


def test_a_lent_photo_with_a_copy_in_a_photo_that_is_not_lent_is_a_leak():
    images = images_of([image("bridges", photo="1"), image("bridges", photo="2")])
    manifest = assign(images, pairs_of((0, 1)), split_params(photos={"validation": ["bridges/1"]}))
    assert with_checks(manifest, pairs_of((0, 1)), TRAIN_ON)["is_leak"].tolist() == [1, 1]


@pytest.mark.parametrize("side", SIDES)
def test_a_photo_of_a_data_set_trained_on_goes_where_it_is_given(side):
    rows = [image(photo="1"), image(photo="1"), image(photo="2")]
    manifest = assign(images_of(rows), NO_PAIRS, split_params(photos={side: ["walls/1"]}))
    assert manifest["split"].tolist()[:2] == [side, side]


# Each manifest as (dataset, photo, label, group, sha256, split), the copies, and the rows where a column is 1.
PLANTED = {
    "a copy on another side": (
        [
            ("walls", None, "crack", "a", "1", "train"),
            ("walls", None, "crack", "b", "2", "test"),
            ("walls", None, "crack", "c", "3", "test"),
        ],
        [(0, 1)],
        {"is_leak": [0, 1]},
    ),
    "a group on two sides": (
        [("walls", None, "crack", "a", "1", "train"), ("walls", None, "crack", "a", "2", "validation")],
        [],
        {"is_leak": [0, 1]},
    ),
    "a photo on two sides": (
        [
            ("walls", "1", "crack", "a", "1", "train"),
            ("walls", "1", "crack", "b", "2", "test"),
            ("decks", "1", "crack", "c", "3", "validation"),
        ],
        [],
        {"is_leak": [0, 1]},
    ),
    "the same bytes on two sides": (
        [("walls", None, "crack", "a", "1", "train"), ("walls", None, "crack", "b", "1", "test")],
        [],
        {"is_twin_across_sides": [0, 1]},
    ),
    "a copy in an outside set": (
        [("bridges", None, "crack", "a", "1", "outside"), ("walls", None, "crack", "a", "2", "excluded")],
        [(0, 1)],
        {"is_shared": [0, 1], "is_excluded": [1]},
    ),
    "the other label in another data set": (
        [("decks", None, "crack", "a", "1", "train"), ("walls", None, "intact", "a", "2", "train")],
        [(0, 1)],
        {"is_conflict": [0, 1]},
    ),
    "the other label in the same data set, which its own contract finds": (
        [("walls", None, "crack", "a", "1", "train"), ("walls", None, "intact", "a", "2", "train")],
        [(0, 1)],
        {},
    ),
    "excluded images": (
        [("walls", "1", "crack", "a", "1", "train"), ("walls", "1", "crack", "a", "1", "excluded")],
        [(0, 1)],
        {"is_excluded": [1]},
    ),
    "nothing": (
        [("walls", None, "crack", "a", "1", "train"), ("walls", None, "crack", "b", "2", "test")],
        [],
        {},
    ),
}


@pytest.mark.parametrize(("rows", "pairs", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_what_is_planted_in_a_manifest_is_found_in_it(rows, pairs, expected):
    found = checked(rows, pairs_of(*pairs))
    columns = ["is_leak", "is_twin_across_sides", "is_shared", "is_conflict", "is_excluded"]
    assert {name: np.flatnonzero(found[name]).tolist() for name in columns if found[name].any()} == expected


@pytest.mark.parametrize("case", [name for name in PLANTED if name not in ("nothing", "excluded images")])
def test_a_planted_fault_turns_the_contract_of_the_split_red(case):
    rows, pairs, expected = PLANTED[case]
    broken = [rule for rule in check(checked(rows, pairs_of(*pairs)), split_rules()) if not rule.success]
    assert len([rule for rule in broken if rule.severity == "fail"]) == len(expected.keys() - {"is_excluded"})
    if "is_leak" in expected:
        assert [(rule.text, rule.paths) for rule in broken] == [
            ("no group, and no photo, is on two sides of the split", ("0.jpg", "1.jpg"))
        ]


def test_too_many_excluded_images_are_a_warning():
    n = 200
    rows = [("walls", None, "crack", str(n), str(n), "train") for n in range(n)]
    for n_excluded, is_met in ((2, True), (3, False)):
        few = [(*row[:5], "excluded") if number < n_excluded else row for number, row in enumerate(rows)]
        *others, rule = check(checked(few), split_rules())
        assert all(other.success for other in others)
        assert (rule.severity, rule.success) == ("warn", is_met)


def test_images_of_one_path_in_two_data_sets_are_two_images():
    rows = [("walls", None, "crack", "a", "1", "train"), ("decks", None, "crack", "b", "2", "test")]
    manifest = manifest_of(rows).assign(path="crack/0001.jpg")
    assert with_checks(manifest, NO_PAIRS, TRAIN_ON)["is_leak"].sum() == 0


def sides_and_labels(n=2, **columns):
    """A manifest with n groups of one image for each side and label."""
    rows = [(side, label) for side in SIDES for label in ("crack", "intact") for _ in range(n)]
    manifest = pd.DataFrame(rows, columns=["split", "label"])
    names = [str(number) for number in range(len(manifest))]
    return manifest.assign(group=names, path=[f"{name}.jpg" for name in names], slice="").assign(**columns)


def test_both_labels_on_every_side_are_enough():
    check_sides(sides_and_labels())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("label", "left"), [("crack", "intact"), ("intact", "crack")])
def test_too_few_groups_for_a_label_on_a_side_are_an_error(side, label, left):
    manifest = sides_and_labels()
    lacking = manifest[(manifest["split"] != side) | (manifest["label"] != label)]
    with pytest.raises(CracksError, match=rf"The {side} side has \['{left}'\], it needs both .*: too few groups"):
        check_sides(lacking)


@pytest.mark.parametrize("side", SIDES)
def test_an_empty_side_is_an_error(side):
    manifest = sides_and_labels()
    with pytest.raises(CracksError, match=f"The {side} side has no images, it needs both crack and intact"):
        check_sides(manifest[manifest["split"] != side])


def test_a_group_that_swallows_a_label_is_an_error():
    manifest = sides_and_labels(4)
    cracked = manifest.index[manifest["label"] == "crack"]
    half = manifest.assign(group=manifest["group"].mask(manifest.index.isin(cracked[:6]), "big"))
    check_sides(half)
    more = manifest.assign(group=manifest["group"].mask(manifest.index.isin(cracked[:7]), "big"))
    with pytest.raises(CracksError, match=r"holds 7 of the 12 images of label 'crack', 0\.jpg among them"):
        check_sides(more)


def test_a_group_that_swallows_a_slice_is_an_error_but_a_slice_of_one_image_is_none():
    manifest = sides_and_labels(4)
    manifest.loc[0, "slice"] = "stairs"
    check_sides(manifest)
    manifest.loc[[0, 1], ["slice", "group"]] = ["stairs", "big"]
    with pytest.raises(CracksError, match="holds 2 of the 2 images of slice 'stairs'"):
        check_sides(manifest)


def test_the_summary_of_a_hand_worked_example():
    found = checked(
        [
            ("walls", None, "crack", "a", "1", "train"),
            ("walls", None, "crack", "a", "2", "train"),
            ("decks", None, "crack", "b", "3", "test"),
            ("walls", None, "crack", "b", "3", "train"),
            ("walls", None, "crack", "c", "4", "excluded"),
            ("bridges", None, "crack", "c", "5", "outside"),
        ]
    )
    summary = summarise(found, TRAIN_ON)
    # two of one group on two sides are a leak each, and of the same bytes besides
    assert summary == {"n_images": 5, "n_groups": 3, "n_copies": 2, "n_excluded": 1, "leaks": 4}


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """Two data sets: walls with copies, bridges, which shares nothing with it."""
    folder = tmp_path_factory.mktemp("split")
    for name, seed in (("walls", 1), ("bridges", 2)):
        files = drawn_files(n=20 if name == "walls" else 4, seed=seed, mirrored=4)
        ingest_files(files, folder / name).rename(folder / f"{name}-dataset")
    return folder


@pytest.fixture
def places(ingested, tmp_path):
    """The paths of the stage, with both data sets found green."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "validated").mkdir()
    for name in ("walls", "bridges"):
        (tmp_path / "datasets" / name).symlink_to(ingested / f"{name}-dataset")
        (tmp_path / "validated" / f"{name}.json").write_text('{"success": true}')
    return {
        "datasets": tmp_path / "datasets",
        "validated": tmp_path / "validated",
        "manifest_path": tmp_path / "out" / "manifest.parquet",
        "summary_path": tmp_path / "out" / "split.json",
        "report": tmp_path / "out" / "contract.json",
        "page": tmp_path / "out" / "contract.html",
    }


@pytest.fixture
def params():
    return params_for(["bridges", "walls"], train_on=["walls"])


def test_inventories_are_put_one_below_the_other_and_rows_count_within_each(places):
    inventory = read_inventories(places["datasets"], ["bridges", "walls"])
    assert inventory["dataset"].tolist() == ["bridges"] * 16 + ["walls"] * 48
    assert inventory["row"].tolist() == [*range(16), *range(48)]
    assert inventory.index.tolist() == list(range(64))


def test_a_green_split_writes_manifest_summary_report_and_page(places, params, caplog):
    caplog.set_level("INFO", "pipeline")
    split.run(params, **places)
    manifest = pd.read_parquet(places["manifest_path"])
    assert manifest["dataset"].value_counts().to_dict() == {"walls": 48, "bridges": 16}
    assert (manifest["split"] == "outside").equals(manifest["dataset"] == "bridges")
    walls = manifest[manifest["dataset"] == "walls"]
    assert set(walls["split"]) == set(SIDES)
    assert (walls["group"].value_counts() == 2).sum() == 8
    summary = json.loads(places["summary_path"].read_text())
    assert summary == {"n_images": 48, "n_groups": 40, "n_copies": 8, "n_excluded": 0, "leaks": 0}
    report = json.loads(places["report"].read_text())
    assert (report["dataset"], report["success"], len(report["rules"])) == ("split", True, 5)
    assert report["facts"]["outside images"] == "16"
    page = Page(places["page"].read_text())
    assert "no group, and no photo, is on two sides of the split" in page.text
    assert "split: contract green" in caplog.messages


def test_a_split_that_leaks_is_refused_with_rule_and_paths_and_no_manifest(places, params, monkeypatch):
    def tampered(images, pairs, params):
        manifest = assign(images, pairs, params)
        copy = pairs["second"].iloc[-1]
        elsewhere = next(side for side in SIDES if side != manifest["split"][copy])
        manifest.loc[copy, "split"] = elsewhere
        return manifest

    monkeypatch.setattr(split, "assign", tampered)
    lines = "split breaks its contract:\n  not so: no group, and no photo, is on two sides of the split. Observed: "
    with pytest.raises(RefusedError, match=f"^{re.escape(lines)}2 images that break the rule\n    .*jpg\n") as caught:
        split.run(params, **places)
    assert caught.value.exit_code == 3
    assert str(places["page"]) in str(caught.value)
    assert not places["manifest_path"].exists()
    assert not places["summary_path"].exists()
    report = json.loads(places["report"].read_text())
    (broken,) = [rule for rule in report["rules"] if not rule["success"]]
    assert all(path in str(caught.value) for path in broken["paths"])
    assert len(broken["paths"]) == 2
    assert report["success"] is False
    assert len(Page(places["page"].read_text()).all("img")) == 2


def test_a_copy_in_an_outside_set_is_refused(places, params, tmp_path):
    files = drawn_files(n=20, seed=1)
    shared = {
        "crack/shared.jpg": changed(files["crack/0003.jpg"]),
        "intact/1.jpg": drawn_files(1, 9)["intact/0001.jpg"],
    }
    (places["datasets"] / "bridges").unlink()
    ingest_files(shared, tmp_path / "shared").rename(places["datasets"] / "bridges")
    with pytest.raises(
        RefusedError, match=r"no outside image has a copy(.|\n)*crack/shared\.jpg(.|\n)*crack/0003\.jpg"
    ):
        split.run(params, **places)
    assert not places["manifest_path"].exists()


def test_the_command_line_exits_with_3_where_a_contract_is_missing(places, tmp_path, monkeypatch, capsys):
    params = yaml.safe_load(params_for(["bridges", "walls"], train_on=["walls"]).model_dump_json(by_alias=True))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (places["validated"] / "bridges.json").unlink()
    flags = {"manifest_path": "manifest", "summary_path": "summary"}
    arguments = [part for name, path in places.items() for part in (f"--{flags.get(name, name)}", str(path))]
    monkeypatch.setattr(sys, "argv", ["split", "--params", str(tmp_path / "params.yaml"), *arguments])
    with pytest.raises(SystemExit, match=r"^3$"):
        run_main(split.main)
    assert "Data set bridges has no green contract. Run `dvc repro validate@bridges`" in capsys.readouterr().err


@pytest.mark.parametrize("receipt", [None, '{"success": false}'], ids=["missing", "red"])
def test_a_data_set_without_a_green_contract_is_refused_and_nothing_is_written(places, params, receipt):
    path = places["validated"] / "bridges.json"
    path.unlink()
    if receipt:
        path.write_text(receipt)
    with pytest.raises(RefusedError, match=r"Data set bridges has no green contract\. Run `dvc repro"):
        split.run(params, **places)
    assert not places["manifest_path"].parent.exists()


def test_a_split_without_a_test_side_is_an_error_and_nothing_is_written(places):
    params = params_for(["walls"], fractions={"train": 0.5, "validation": 0.5, "test": 0})
    with pytest.raises(CracksError, match="The test side has no images"):
        split.run(params, **places)
    assert not places["manifest_path"].parent.exists()


def test_a_folder_that_no_params_name_does_not_count(places):
    (places["datasets"] / "stale").mkdir()
    (places["datasets"] / "stale" / INVENTORY_FILE).write_text("not read")
    split.run(params_for(["walls"]), **places)
    assert set(pd.read_parquet(places["manifest_path"])["dataset"]) == {"walls"}
