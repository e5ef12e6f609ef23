import numpy as np
import pandas as pd
import pytest

from pipeline.data.contract import check, dataset_rules, files_table
from pipeline.params import Contract

CONTRACT = Contract(
    min_images_per_label=4,
    min_decodable_share=0.9,
    min_minority_share=0.25,
    min_size_px=64,
    max_size_px=512,
    max_copies_share=0.1,
    min_share_in_range=0.95,
    ranges={
        "brightness": (60, 235),
        "contrast": (2, 100),
        "sharpness": (3, 100000),
        "bright_share": (0, 0.2),
        "dark_share": (0, 0.2),
    },
)


def inventory(n_crack=10, n_intact=10, **columns):
    """The inventory of images of 64 x 512 px, both just within the contract."""
    n = n_crack + n_intact
    images = pd.DataFrame(
        {
            "path": [f"{number:05}.jpg" for number in range(n)],
            "id": [f"{number:x}" for number in range(n)],
            "label": ["crack"] * n_crack + ["intact"] * n_intact,
            "height": 64,
            "width": 512,
            "photo": [f"photo-{number}" for number in range(n)],
            "sha256": [f"{number:064x}" for number in range(n)],
            "fingerprint": b"",
            "brightness": 120.0,
            "contrast": 20.0,
            "sharpness": 50.0,
            "bright_share": 0.0,
            "dark_share": 0.0,
        }
    )
    return images.assign(**columns)


def first_is(column, value, n=1):
    images = inventory()
    images.loc[: n - 1, column] = value
    return images


def quarantine(n):
    paths = [f"broken-{number}.jpg" for number in range(n)]
    return pd.DataFrame({"path": paths, "reason": "not an image", "is_image": False, "is_left_out": False})


def copies(n=20, is_copy=0, is_conflict=0, is_doubtful=0):
    first = {"is_copy": is_copy, "is_conflict": is_conflict, "is_doubtful": is_doubtful}
    return pd.DataFrame({name: np.arange(n) < count for name, count in first.items()})


def outcomes(images, broken=None, found=None, contract=CONTRACT, photos_are_named=True):
    found = copies(len(images)) if found is None else found
    table = files_table(images, quarantine(0) if broken is None else broken, found)
    return check(table, dataset_rules(contract, photos_are_named=photos_are_named))


ONE = "1 image that breaks the rule"
# The images, broken files and copies that break one rule and no other; the rule; what is observed; violations.
BROKEN = {
    "another label": (
        first_is("label", "rust"),
        0,
        {},
        "both labels are there, and no other",
        "missing [], unexpected ['rust']",
        (),
    ),
    "few cracks": (inventory(3, 9), 0, {}, "at least 4 images are labelled crack", "3 images", ()),
    "few intact": (inventory(9, 3), 0, {}, "at least 4 images are labelled intact", "3 images", ()),
    "cracks rare": (inventory(4, 16), 0, {}, "the rarer label makes up at least 25.0 %", "20 %", ()),
    "intact rare": (inventory(16, 4), 0, {}, "the rarer label makes up at least 25.0 %", "80 %", ()),
    "much broken": (inventory(), 5, {}, "at least 90.0 % of the files are images that can be read", "80 %", ()),
    "too low": (
        first_is("height", 63),
        0,
        {},
        "the height of every image is between 64 and 512 px",
        ONE,
        ("00000.jpg",),
    ),
    "too high": (
        first_is("height", 513),
        0,
        {},
        "the height of every image is between 64 and 512 px",
        ONE,
        ("00000.jpg",),
    ),
    "too narrow": (
        first_is("width", 63),
        0,
        {},
        "the width of every image is between 64 and 512 px",
        ONE,
        ("00000.jpg",),
    ),
    "too wide": (
        first_is("width", 513),
        0,
        {},
        "the width of every image is between 64 and 512 px",
        ONE,
        ("00000.jpg",),
    ),
    "id twice": (
        first_is("id", "1"),
        0,
        {},
        "every image has an id of its own",
        "2 images that break the rule",
        ("00000.jpg", "00001.jpg"),
    ),
    "conflict": (
        inventory(),
        0,
        {"is_conflict": 2},
        "no image has a copy with the other label",
        "2 images that break the rule",
        ("00000.jpg", "00001.jpg"),
    ),
    "doubtful": (
        inventory(),
        0,
        {"is_doubtful": 2},
        "of no two images is it doubtful whether they are copies",
        "2 images that break the rule",
        ("00000.jpg", "00001.jpg"),
    ),
    "copies": (inventory(), 0, {"is_copy": 3}, "at most 10.0 % of the images are copies of others", "15 %", ()),
    "photo unknown": (first_is("photo", None), 0, {}, "the photo of every image is known", ONE, ("00000.jpg",)),
} | {
    f"{column} {value:g}": (
        first_is(column, value, n=2),
        0,
        {},
        f"{column} is between {low:,g} and {high:,g} for at least 95.0 % of the images",
        "2 images that break the rule",
        ("00000.jpg", "00001.jpg"),
    )
    for column, (low, high) in CONTRACT.ranges.items()
    for value in ([low - 1, high + 1] if low else [high + 0.1])
}


@pytest.mark.parametrize(("images", "n_broken", "found", "rule", "observed", "paths"), BROKEN.values(), ids=BROKEN)
def test_each_rule_alone_can_be_broken(images, n_broken, found, rule, observed, paths):
    broken = [
        outcome
        for outcome in outcomes(images, quarantine(n_broken), copies(len(images), **found))
        if not outcome.success
    ]
    severity = "warn" if "copies of others" in rule or "doubtful" in rule else "fail"
    assert [(one.text, one.severity, one.observed, one.paths) for one in broken] == [(rule, severity, observed, paths)]


def test_the_rules_that_can_be_broken_are_all_rules():
    assert {outcome.text for outcome in outcomes(inventory())} == {case[3] for case in BROKEN.values()}


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (inventory(4, 12), {}),
        (inventory(12, 4), {}),
        (inventory(width=64), {}),
        (inventory(height=512), {}),
        (inventory(brightness=60.0, contrast=100.0, sharpness=3.0, dark_share=0.2), {}),
        (first_is("brightness", 10.0), {}),
        (inventory(), {"is_copy": 2}),
    ],
    ids=["a quarter cracked", "a quarter intact", "smallest", "largest", "looks", "one in twenty is dark", "copies"],
)
def test_a_value_exactly_at_its_limit_is_allowed(images, found):
    assert all(outcome.success for outcome in outcomes(images, quarantine(1), copies(len(images), **found)))


def test_files_that_cannot_be_read_break_no_rule_about_images():
    assert all(outcome.success for outcome in outcomes(inventory(), quarantine(2)))


def test_a_label_without_any_image_is_named():
    broken = {outcome.text: outcome.observed for outcome in outcomes(inventory(0, 20)) if not outcome.success}
    assert broken["both labels are there, and no other"] == "missing ['crack'], unexpected []"


def test_at_most_ten_paths_are_listed_for_a_rule():
    (broken,) = [outcome for outcome in outcomes(inventory(height=16)) if not outcome.success]
    assert (len(broken.paths), broken.observed) == (10, "20 images that break the rule")


def test_photos_must_be_known_only_if_names_contain_them():
    unknown = inventory(photo=None)
    assert all(outcome.success for outcome in outcomes(unknown, photos_are_named=False))
    assert not all(outcome.success for outcome in outcomes(unknown))


def test_the_table_has_a_row_for_each_file_found():
    table = files_table(inventory(2, 1), quarantine(1), copies(3, is_copy=1, is_conflict=2, is_doubtful=1))
    columns = ["path", "label", "is_crack", "is_copy", "is_conflict", "is_doubtful"]
    expected = pd.DataFrame(
        [
            ["00000.jpg", "crack", 1, 1, 1, 1],
            ["00001.jpg", "crack", 1, 0, 1, 0],
            ["00002.jpg", "intact", 0, 0, 0, 0],
            ["broken-0.jpg", *[None] * 5],
        ],
        columns=columns,
    )
    pd.testing.assert_frame_equal(table[columns], expected, check_dtype=False)


def test_disputed_images_do_not_count_as_unreadable():
    held_back = quarantine(3).assign(is_image=[True, False, True])
    table = files_table(inventory(2, 1), held_back, copies(3))
    assert table["path"].tolist()[3:] == ["broken-1.jpg"]


def test_notes_and_thumbnails_do_not_count_as_unreadable():
    table = files_table(inventory(2, 1), quarantine(3).assign(is_left_out=[True, False, True]), copies(3))
    assert table["path"].tolist()[3:] == ["broken-1.jpg"]


def test_great_expectations_prints_and_logs_nothing(capfd, caplog):
    outcomes(inventory(1, 10), quarantine(3))
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")
