import numpy as np
import pandas as pd
import pytest
from drawn_data import NO_PAIRS, pairs_of

from pipeline.data.contract import NONE_DOUBTFUL, check
from pipeline.data.group_split import SIDES
from pipeline.errors import CracksError
from pipeline.split import check_sides, split_rules, summarise, with_checks

TRAIN_ON = ("walls", "decks")


def manifest_of(rows):
    """A manifest from (dataset, photo, label, group, sha256, split)."""
    columns = ["dataset", "photo", "label", "group", "sha256", "split"]
    manifest = pd.DataFrame(rows, columns=columns)
    manifest["photo"] = manifest["photo"].astype(object)
    return manifest.assign(path=[f"{n}.jpg" for n in range(len(manifest))], slice="", batch="", row=0)


def checked(rows, pairs=NO_PAIRS, doubtful=NO_PAIRS):
    return with_checks(manifest_of(rows), pairs, doubtful, TRAIN_ON)


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
        {"is_duplicate_across_sides": [0, 1]},
    ),
    "a copy in an external test set": (
        [("bridges", None, "crack", "a", "1", "external"), ("walls", None, "crack", "a", "2", "excluded")],
        [(0, 1)],
        {"is_shared": [0, 1]},
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
    "nothing": (
        [("walls", None, "crack", "a", "1", "train"), ("walls", None, "crack", "b", "2", "test")],
        [],
        {},
    ),
}


@pytest.mark.parametrize(("rows", "pairs", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_faults_planted_in_a_manifest_are_found(rows, pairs, expected):
    found = checked(rows, pairs_of(*pairs))
    columns = ["is_leak", "is_duplicate_across_sides", "is_shared", "is_conflict"]
    assert {name: np.flatnonzero(found[name]).tolist() for name in columns if found[name].any()} == expected


@pytest.mark.parametrize("case", [name for name in PLANTED if name != "nothing"])
def test_a_planted_fault_fails_the_contract_of_the_split(case):
    rows, pairs, expected = PLANTED[case]
    broken = [rule for rule in check(checked(rows, pairs_of(*pairs)), split_rules()) if not rule.success]
    assert len([rule for rule in broken if rule.severity == "fail"]) == len(expected)
    if "is_leak" in expected:
        assert [(rule.text, rule.paths) for rule in broken] == [
            ("no group, and no photo, is on two sides of the split", ("0.jpg", "1.jpg"))
        ]


def test_too_many_excluded_images_are_a_warning():
    n = 200
    rows = [("walls", None, "crack", str(n), str(n), "train") for n in range(n)]
    for n_excluded, is_met in ((2, True), (3, False)):
        few = [(*row[:5], "excluded") if number < n_excluded else row for number, row in enumerate(rows)]
        *others, rule, of_doubt = check(checked(few), split_rules())
        assert all(other.success for other in (*others, of_doubt))
        assert (rule.severity, rule.success) == ("warn", is_met)
        assert rule.observed == f"{n_excluded} images that break the rule"


def test_a_doubtful_copy_in_another_data_set_is_a_warning_and_no_leak():
    rows = [("walls", None, "crack", "a", "1", "train"), ("bridges", None, "intact", "b", "2", "external")]
    broken = [rule for rule in check(checked(rows, doubtful=pairs_of((0, 1))), split_rules()) if not rule.success]
    assert [(rule.text, rule.severity, rule.paths) for rule in broken] == [(NONE_DOUBTFUL, "warn", ("0.jpg", "1.jpg"))]


def test_tiles_of_a_photo_are_a_group_and_no_copies():
    rows = [("walls", "1", "crack", "a", str(number), "train") for number in range(3)]
    summary = summarise(checked(rows), NO_PAIRS, TRAIN_ON)
    assert (summary["n_groups"], summary["n_copies"]) == (1, 0)


def test_images_of_one_path_in_two_data_sets_are_two_images():
    rows = [("walls", None, "crack", "a", "1", "train"), ("decks", None, "crack", "b", "2", "test")]
    manifest = manifest_of(rows).assign(path="crack/0001.jpg")
    assert with_checks(manifest, NO_PAIRS, NO_PAIRS, TRAIN_ON)["is_leak"].sum() == 0


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
    with pytest.raises(CracksError, match=rf"The {side} side has \['{left}'\], but it needs both .* too few groups"):
        check_sides(lacking)


@pytest.mark.parametrize("side", SIDES)
def test_an_empty_side_is_an_error(side):
    manifest = sides_and_labels()
    with pytest.raises(CracksError, match=f"The {side} side has no images, but it needs both crack and intact"):
        check_sides(manifest[manifest["split"] != side])


def test_a_group_with_most_images_of_a_label_is_an_error():
    manifest = sides_and_labels(4)
    cracked = manifest.index[manifest["label"] == "crack"]
    half = manifest.assign(group=manifest["group"].mask(manifest.index.isin(cracked[:6]), "big"))
    check_sides(half)
    more = manifest.assign(group=manifest["group"].mask(manifest.index.isin(cracked[:7]), "big"))
    with pytest.raises(CracksError, match=r"holds 7 of the 12 images of label 'crack', for example 0\.jpg"):
        check_sides(more)


def test_a_group_with_most_images_of_a_slice_is_an_error_unless_the_slice_has_one_image():
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
            ("bridges", None, "crack", "c", "5", "external"),
        ]
    )
    # of the copies one is of the same photo as its original, and one is outside of what is trained on
    summary = summarise(found, pairs_of((0, 1), (2, 3), (4, 5)), TRAIN_ON)
    # two of one group on two sides are a leak each, and of the same bytes besides
    assert summary == {"n_images": 5, "n_groups": 3, "n_copies": 2, "n_excluded": 1, "leaks": 4}
