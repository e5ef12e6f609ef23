from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawn_data import NO_PAIRS, changed, drawn_files, ingest_files, params_for
from page_reader import Page
from PIL import ImageOps

from pipeline.data.audit import audit, copies_within, copy_groups, facts
from pipeline.data.contract import Rule
from pipeline.data.contract_page import violations
from pipeline.data.images import PackedImages, read_quarantine
from pipeline.data.near_duplicates import find_copies
from pipeline.params import Copies

LIMITS = Copies(min_correlation=0.55)


@pytest.fixture(scope="module")
def files():
    """Four originals of each label, copies of every kind, one of them with the other label, and two broken files."""
    originals = drawn_files(n=4)
    first = originals["crack/0001.jpg"]
    return originals | {
        "crack/0011.jpg": changed(first),
        "crack/0012.jpg": changed(first, lambda image: image, quality=70),
        "crack/0013.jpg": first,
        "crack/0014.jpg": changed(originals["crack/0002.jpg"], lambda image: image.rotate(90)),
        "intact/0011.jpg": changed(originals["crack/0002.jpg"], ImageOps.flip),
        "intact/0012.jpg": originals["intact/0004.jpg"],
        "intact/0013.jpg": first[:400],
        "intact/notes.txt": b"no image\n",
    }


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    return ingest_files(files, tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def images(folder):
    return PackedImages(folder)


@pytest.fixture(scope="module")
def pairs(images):
    return find_copies(images.inventory, images, LIMITS)[0]


@pytest.fixture(scope="module")
def copies(images, pairs):
    return copies_within(images.inventory, pairs, NO_PAIRS)


def test_mirrored_turned_saved_and_identical_copies_are_found_with_their_kind(images, copies):
    by_path = copies.set_index(images.inventory["path"])
    found = by_path[by_path["is_copy"]]
    paths = images.inventory["path"].to_numpy()
    assert {path: (paths[row["group"]], row["kind"]) for path, row in found.iterrows()} == {
        "crack/0011.jpg": ("crack/0001.jpg", "mirrored left-right"),
        "crack/0012.jpg": ("crack/0001.jpg", "saved again"),
        "crack/0013.jpg": ("crack/0001.jpg", "identical"),
        "crack/0014.jpg": ("crack/0002.jpg", "turned by 90 degrees"),
        "intact/0011.jpg": ("crack/0002.jpg", "mirrored up-down"),
        "intact/0012.jpg": ("intact/0004.jpg", "identical"),
    }
    assert set(by_path.loc[~by_path["is_copy"], "kind"]) == {"the first"}


def test_all_members_of_a_group_with_two_labels_are_a_conflict(images, copies):
    conflicts = images.inventory.loc[copies["is_conflict"], "path"]
    assert conflicts.tolist() == ["crack/0002.jpg", "crack/0014.jpg", "intact/0011.jpg"]


def test_a_copy_that_only_a_later_image_links_is_not_called_the_first():
    pairs = pd.DataFrame({"first": [0, 1], "second": [2, 2], "kind": ["saved again", "identical"]})
    found = copies_within(pd.DataFrame({"label": ["crack"] * 4}), pairs, NO_PAIRS)
    assert found["group"].tolist() == [0, 0, 0, 3]
    assert found["kind"].tolist() == ["the first", "by a later copy", "saved again", "the first"]


def test_the_facts_of_a_hand_worked_example():
    inventory = pd.DataFrame({"label": ["crack"] * 5 + ["intact"] * 3, "sha256": list("aabcdefg")})
    copies = pd.DataFrame(
        {
            "group": [0, 0, 0, 3, 4, 4, 6, 7],
            "is_copy": [False, True, True, False, False, True, False, False],
            "is_conflict": [False] * 4 + [True] * 2 + [False] * 2,
            "kind": ["the first", "identical", "saved again", "the first", "the first", "saved again"]
            + ["the first"] * 2,
        }
    )
    quarantine = pd.DataFrame({"is_image": [True, False, False, False], "is_left_out": [False, True, True, False]})
    assert facts(inventory, quarantine, copies) == {
        "images": "8",
        "labelled crack": "5",
        "labelled intact": "3",
        "crack, distinct by bytes": "4",
        "intact, distinct by bytes": "3",
        "crack, distinct by content": "3",
        "intact, distinct by content": "3",
        "copies: saved again": "2",
        "copies: identical": "1",
        "images with a copy of the other label": "2",
        "files that cannot be read": "1",
        "images and files left out": "3",
        "test images a random 80/20 split would leak": "56.0 %",  # (3 * 0.96 + 2 * 0.8) / 8
    }


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 2, 1, 1], [5, 3, 1, 1, 1, 1]])
def test_the_leak_of_a_random_split_agrees_with_a_simulation(sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    n, n_draws = len(group), 100_000
    is_test = np.random.default_rng(0).random((n_draws, n)) < 0.2
    in_training = np.stack([(~is_test[:, group == one]).any(axis=1) for one in range(len(sizes))], axis=1)
    simulated = in_training[:, group][is_test].mean()
    inventory = pd.DataFrame({"label": "crack", "sha256": [str(place) for place in range(n)]})
    copies = pd.DataFrame({"group": group, "is_copy": False, "is_conflict": False, "kind": ""})
    nothing = pd.DataFrame(columns=["is_image", "is_left_out"], dtype=bool)
    stated = facts(inventory, nothing, copies)["test images a random 80/20 split would leak"]
    assert float(stated.rstrip(" %")) / 100 == pytest.approx(simulated, abs=0.005)


def test_groups_are_shown_conflicts_first_then_the_largest(images, copies, pairs):
    groups = copy_groups(copies, pairs, images)
    assert [(group.n_images, group.is_conflict) for group in groups] == [(3, True), (4, False), (2, False)]
    first = groups[0].tiles
    assert [tile.path for tile in first] == ["crack/0002.jpg", "intact/0011.jpg", "crack/0014.jpg"]
    assert [tile.caption for tile in first] == ["the first", "mirrored up-down", "turned by 90 degrees"]
    assert np.array_equal(first[0].pixels, images.pixels(1))


def test_of_a_large_group_eight_images_are_shown_and_of_a_conflict_both_labels(images):
    n = len(images.inventory)
    one_group = pd.DataFrame({"group": 0, "is_copy": True, "is_conflict": True, "kind": "identical"}, index=range(n))
    (group,) = copy_groups(one_group, NO_PAIRS.assign(kind=""), images)
    assert (group.n_images, len(group.tiles)) == (n, 8)
    assert [tile.label for tile in group.tiles] == ["crack", "intact"] * 4


def test_pictures_of_images_that_break_a_rule_are_shown_if_readable(images):
    rules = [
        Rule("broken", "fail", False, "3", ("intact/0002.jpg", "no/image.txt")),
        Rule("met", "fail", True, "0", ("intact/0001.jpg",)),
    ]
    shown = violations(rules, images.inventory.assign(caption=""), images)
    assert {text: [tile.path for tile in tiles] for text, tiles in shown.items()} == {"broken": ["intact/0002.jpg"]}


def test_an_audit_gives_rules_facts_and_a_page(folder, images):
    params = params_for(["walls"], contract={"min_decodable_share": 0.5})
    found = audit("walls", params.datasets["walls"], params, images, read_quarantine(folder))
    broken = {rule.text: rule.severity for rule in found.rules if not rule.success}
    assert broken == {
        "no image has a copy with the other label": "fail",
        "at most 5.0 % of the images are copies of others": "warn",
    }
    assert found.facts["images"] == "14"
    assert found.facts["files that cannot be read"] == "1"
    assert found.facts["images and files left out"] == "1"
    assert found.facts["copies: identical"] == "2"
    page = Page(found.page)
    assert all(text in page.text for text in [*broken, "intact/notes.txt", "turned by 90 degrees"])
    assert len(page.all("img")) == 3 + 3 + 4 + 2  # violations, then the groups


def test_the_audit_of_a_drawn_data_set_says_so(folder, images):
    params = params_for(["walls"])
    drawn = params.datasets["walls"].model_copy(update={"source": Path("a.yaml")})
    pages = [
        audit("walls", dataset, params, images, read_quarantine(folder)).page
        for dataset in (drawn, params.datasets["walls"])
    ]
    assert ["drawn" in Page(page).text.lower() for page in pages] == [True, False]
