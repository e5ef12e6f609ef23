import hashlib
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from archive_writer import LIMITS, limits, write_tar, write_zip

from pipeline import ingest
from pipeline.archives import Entry
from pipeline.demo import Recipe, draw
from pipeline.errors import CracksError
from pipeline.fingerprints import fingerprint
from pipeline.images import (
    IMAGES_FILE,
    INVENTORY_FILE,
    QUARANTINE_FILE,
    PackedImages,
    decode,
    look,
    read_quarantine,
    thumbnail,
)
from pipeline.ingest import (
    DEFAULT_LABELS,
    check_labels,
    check_photo_pattern,
    describe,
    entries_of,
    label_of,
    photo_of,
    slice_of,
)
from pipeline.params import Dataset
from pipeline.sources import batches_of

ROOT = Path(__file__).parents[1]
PATTERN = r"(photo-\d+)_tile-\d+"


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def files(draw_tile, encode):
    """A data set with three images that can be read, two that cannot, and one whose folder says nothing either."""
    tile = encode(draw_tile(0, cracked=True))
    return {
        "Positive/photo-1_tile-1.jpg": tile,
        "Positive/photo-1_tile-2.jpg": tile[: len(tile) // 2],
        "Positive/photo-2_tile-1.png": encode(draw_tile(1, cracked=True, size_px=72)[:48], "PNG"),
        "Negative/deck.jpg": encode(draw_tile(2)),
        "Negative/NA": b"This is a text, not an image.\n",
        "notes.txt": b"Taken in spring.\n",
    }


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, files):
    """What the stage writes for `files`, run from its command line."""
    folder = tmp_path_factory.mktemp("ingest")
    with zipfile.ZipFile(folder / "walls.zip", "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["datasets"]["walls"] = {"source": str(folder / "walls.zip"), "photo_pattern": PATTERN}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    out = folder / "datasets" / "walls"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["--params", folder / "params.yaml", "--dataset", "walls", "--out", out]
        patch.setattr(sys, "argv", ["ingest", *map(str, arguments)])
        ingest.main()
    return out


@pytest.fixture(scope="module")
def inventory(ingested):
    return pd.read_parquet(ingested / INVENTORY_FILE).set_index("path")


def test_three_files_are_written_and_nothing_beside_them(ingested):
    names = {IMAGES_FILE, INVENTORY_FILE, QUARANTINE_FILE}
    assert set(below(ingested.parent)) == {"walls"} | {f"walls/{name}" for name in names}


def test_the_inventory_has_a_row_for_each_image_that_can_be_read_sorted_by_path(inventory):
    assert list(inventory.index) == ["Negative/deck.jpg", "Positive/photo-1_tile-1.jpg", "Positive/photo-2_tile-1.png"]


def test_labels_come_from_the_folders_and_photos_from_the_pattern(inventory):
    assert inventory["label"].to_dict() == {
        "Negative/deck.jpg": "intact",
        "Positive/photo-1_tile-1.jpg": "crack",
        "Positive/photo-2_tile-1.png": "crack",
    }
    assert inventory["photo"].fillna("none").tolist() == ["none", "photo-1", "photo-2"]


def test_the_inventory_describes_the_files(inventory, files):
    for path, row in inventory.iterrows():
        pixels = decode(files[path])
        assert row["sha256"] == hashlib.sha256(files[path]).hexdigest()
        assert (row["height"], row["width"]) == pixels.shape[:2]
        assert row["n_bytes"] == len(files[path])
        assert row["fingerprint"] == fingerprint(thumbnail(pixels)).tobytes()
        assert row[list(look(pixels))].to_dict() == look(pixels)
    assert inventory["format"].tolist() == ["JPEG", "JPEG", "PNG"]
    assert inventory["mode"].tolist() == ["RGB", "RGB", "RGB"]


def test_the_images_are_packed_end_to_end_in_the_order_of_the_inventory(ingested, inventory, files):
    assert (ingested / IMAGES_FILE).read_bytes() == b"".join(files[path] for path in inventory.index)
    images = PackedImages(ingested)
    assert [images.content(row) for row in range(len(inventory))] == [files[path] for path in inventory.index]


def test_what_cannot_be_read_is_in_quarantine_with_its_reason(ingested):
    quarantine = read_quarantine(ingested).set_index("path")["reason"]
    assert list(quarantine.index) == ["Negative/NA", "Positive/photo-1_tile-2.jpg", "notes.txt"]
    assert quarantine["notes.txt"] == quarantine["Negative/NA"] == "not an image"
    assert quarantine["Positive/photo-1_tile-2.jpg"].startswith("image file is truncated")


@pytest.fixture
def bad_source(tmp_path):
    """Return a function that writes the files into an archive and returns its path."""

    def write(files):
        path = tmp_path / "incoming" / "walls.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as opened:
            for name, content in files.items():
                opened.writestr(name, content)
        return path

    return write


def test_an_unknown_label_folder_is_refused_and_what_was_there_stays(bad_source, files, tmp_path):
    source = bad_source(files | {"Rusty/one.jpg": files["Negative/deck.jpg"]})
    out = tmp_path / "datasets" / "walls"
    out.mkdir(parents=True)
    (out / IMAGES_FILE).write_text("of a former run")
    with pytest.raises(CracksError, match=r"folders without a known label: 'Rusty'\. Known are Positive, Negative"):
        ingest.run(Dataset(source=source), LIMITS, out)
    assert below(out.parent) == ["walls", f"walls/{IMAGES_FILE}"]
    assert (out / IMAGES_FILE).read_text() == "of a former run"


def test_an_archive_without_an_image_is_refused_and_nothing_is_left(bad_source, tmp_path):
    source = bad_source({"Positive/one.jpg": b"text", "notes.txt": b"text"})
    with pytest.raises(CracksError, match=r"walls\.zip holds no image that can be read \(2 other files\)"):
        ingest.run(Dataset(source=source), LIMITS, tmp_path / "datasets" / "walls")
    assert below(tmp_path / "datasets") == []


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        (r"photo-\d+", r"photo_pattern 'photo-\\\\d\+' has no group\. Put the part"),
        (r"(photo-\d+", r"photo_pattern '\(photo-\\\\d\+' is no regular expression: missing \)"),
    ],
)
def test_a_bad_photo_pattern_is_refused_before_anything_is_written(bad_source, files, tmp_path, pattern, match):
    dataset = Dataset(source=bad_source(files), photo_pattern=pattern)
    with pytest.raises(CracksError, match=match):
        ingest.run(dataset, LIMITS, tmp_path / "datasets" / "walls")
    assert not (tmp_path / "datasets").exists()


@pytest.mark.parametrize("pattern", [None, "(a)", "a(b)(c)", "(?P<photo>.*)_"])
def test_a_photo_pattern_with_a_group_or_none_at_all_is_accepted(pattern):
    check_photo_pattern(Dataset(source=Path("walls.zip"), photo_pattern=pattern))


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Positive/00001.jpg", "crack"),
        ("Negative/deep/er/00001.jpg", "intact"),
        ("archive/Decks/Cracked/7001-1.jpg", "crack"),
        ("archive/Decks/Non-cracked/7001-1.jpg", "intact"),
        ("Negative/Positive/00001.jpg", "crack"),  # the nearest folder counts
        ("elsewhere/Positive.jpg", None),
        ("Positive", None),  # a file of that name
        ("positive/00001.jpg", None),
    ],
)
def test_the_nearest_known_folder_gives_the_label(path, label):
    assert label_of(path, DEFAULT_LABELS) == label


def test_labels_of_a_data_set_replace_the_usual_ones():
    assert label_of("Riss/Positive/1.jpg", {"Riss": "crack"}) == "crack"
    assert label_of("Positive/1.jpg", {"Riss": "crack"}) is None


@pytest.mark.parametrize(
    ("path", "pattern", "photo"),
    [
        ("Positive/7001-12.jpg", r"/(\d+)-", "7001"),
        ("Positive/deck.jpg", r"/(\d+)-", None),
        ("Positive/7001-12.jpg", None, None),
        ("W/CW/7001-12.jpg", r"(\w+)/C?(\w+)", "W"),
        ("a.jpg", r"a(b)?", None),
    ],
)
def test_the_first_group_of_the_pattern_names_the_photo(path, pattern, photo):
    assert photo_of(path, pattern) == photo


def test_no_more_than_five_unknown_folders_are_shown():
    paths = [f"folder {number}/{image}.jpg" for number in range(7) for image in range(3)]
    with pytest.raises(CracksError, match=r"label: 'folder 0', 'folder 1', .*'folder 4' \.\.\.\. Known are Riss\."):
        check_labels(paths, Dataset(source=Path("walls.zip"), labels={"Riss": "crack"}))


def test_nothing_without_a_label_is_fine():
    check_labels([], Dataset(source=Path("walls.zip")))


def test_an_image_of_another_mode_is_described_by_how_it_is_stored(encode, draw_tile):
    row = describe(("a.png", encode(draw_tile(0)[:, :40, 0], "PNG"), 10**6))
    assert (row["mode"], row["height"], row["width"]) == ("L", 64, 40)


def test_an_image_of_too_many_pixels_is_told_from_its_header_alone(encode):
    content = encode(np.zeros((1000, 1001, 3), np.uint8), "PNG")
    assert describe(("a.png", content, 1_001_000))["width"] == 1001
    row = describe(("a.png", content[:100], 1_000_000))
    assert row == {"path": "a.png", "reason": "1001 x 1000 px is more than 1 megapixels"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Decks/Cracked/7001-1.jpg", "Decks"),
        ("archive/Decks/Non-cracked/deep/7001-1.jpg", "archive/Decks/deep"),
        ("Positive/00001.jpg", ""),
        ("Positive.jpg", ""),
    ],
)
def test_a_slice_is_the_folders_that_are_no_labels(path, expected):
    assert slice_of(path, DEFAULT_LABELS) == expected


@pytest.fixture
def run_ingest(tmp_path):
    """Return a function that ingests a source and returns its inventory and quarantine, both read from disk."""

    def run(source, allowed=LIMITS):
        ingest.run(Dataset(source=source), allowed, tmp_path / "out")
        return pd.read_parquet(tmp_path / "out" / INVENTORY_FILE), read_quarantine(tmp_path / "out")

    return run


def test_a_folder_of_archives_is_ingested_batch_by_batch(tmp_path, run_ingest, encode, draw_tile):
    tiles = [encode(draw_tile(seed)) for seed in range(4)]
    incoming = tmp_path / "incoming"
    (incoming / "Positive").mkdir(parents=True)
    (incoming / "Positive" / "a.jpg").write_bytes(tiles[0])
    write_tar(incoming / "2024-09.tar", {"Positive/a.jpg": tiles[1], "Negative/b.jpg": b"text"}, "w")
    write_zip(incoming / "2024-10.zip", {"Negative/a.jpg": tiles[2], "Positive/a.jpg": tiles[3]})
    images, quarantine = run_ingest(incoming)
    assert list(zip(images["batch"], images["path"], strict=True)) == [
        ("", "Positive/a.jpg"),
        ("2024-09.tar", "Positive/a.jpg"),
        ("2024-10.zip", "Negative/a.jpg"),
        ("2024-10.zip", "Positive/a.jpg"),
    ]
    assert images["id"].is_unique
    packed = PackedImages(tmp_path / "out")
    assert [packed.content(row) for row in range(4)] == tiles
    assert quarantine.to_dict("records") == [
        {"batch": "2024-09.tar", "path": "Negative/b.jpg", "reason": "not an image", "is_image": False}
    ]


def test_an_id_says_batch_and_path_and_stays_when_images_are_added(tmp_path, run_ingest, encode, draw_tile):
    tile = encode(draw_tile(0))
    write_zip(tmp_path / "walls.zip", {"Positive/b.jpg": tile})
    (before, _) = run_ingest(tmp_path / "walls.zip")
    write_zip(tmp_path / "walls.zip", {"Positive/a.jpg": tile, "Positive/b.jpg": tile})
    (after, _) = run_ingest(tmp_path / "walls.zip")
    assert before["id"].tolist() == after["id"].tolist()[1:]
    assert before["id"].tolist() == [hashlib.sha256(b"\0Positive/b.jpg").hexdigest()[:16]]


def test_a_batch_whose_name_is_not_unicode_is_ingested(tmp_path, run_ingest, encode, draw_tile):
    (tmp_path / "incoming").mkdir()
    with open(os.fsencode(tmp_path) + b"/incoming/mai \xe9.zip", "wb") as file:  # noqa: PTH123
        write_zip(file, {"Positive/a.jpg": encode(draw_tile(0)), "Positive/b.jpg": b"text"})
    images, quarantine = run_ingest(tmp_path / "incoming")
    assert images["batch"].tolist() == quarantine["batch"].tolist() == [r"mai \udce9.zip"]


def test_entries_that_cannot_be_used_are_in_quarantine_between_the_others(
    tmp_path, run_ingest, monkeypatch, encode, draw_tile
):
    monkeypatch.setattr(ingest, "CHUNK_FILES", 2)
    tile, large = encode(draw_tile(0)), encode(np.zeros((1001, 1000, 3), np.uint8))
    named = [("../a", tile), ("Positive/1.jpg", tile), ("Positive/2.jpg", large), ("C:/b", tile), ("Positive/3", b"")]
    write_zip(tmp_path / "walls.zip", dict([*named, ("Positive/4.jpg", tile), ("Positive/5.jpg", bytes(10**6 + 1))]))
    images, quarantine = run_ingest(tmp_path / "walls.zip", limits(max_image_megapixels=1, max_file_mb=1))
    assert images["path"].tolist() == ["Positive/1.jpg", "Positive/4.jpg"]
    assert quarantine.set_index("path")["reason"].to_dict() == {
        "../a": "its path leads out of the archive",
        "C:/b": "its path leads out of the archive",
        "Positive/2.jpg": "1000 x 1001 px is more than 1 megapixels",
        "Positive/3": "not an image",
        "Positive/5.jpg": "larger than 1 MB",
    }


def test_entries_come_in_chunks_that_are_small_in_number_and_in_memory(monkeypatch):
    monkeypatch.setattr(ingest, "CHUNK_FILES", 3)
    monkeypatch.setattr(ingest, "CHUNK_BYTES", 10)
    sizes = [1, 1, 1, 4, 7, 11, 0, None, 0, 1]
    entries = [Entry(str(number), None if size is None else bytes(size)) for number, size in enumerate(sizes)]
    chunks = [[int(entry.path) for entry in chunk] for chunk in ingest._chunks(iter(entries))]
    assert chunks == [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9]]


def test_a_source_above_a_limit_is_refused_and_nothing_is_left(bad_source, files, run_ingest, tmp_path):
    with pytest.raises(CracksError, match=r"walls\.zip is refused: it holds more than 2 files.* ingest\.max_files"):
        run_ingest(bad_source(files), limits(max_files=2))
    assert not (tmp_path / "out").exists()


def test_files_of_a_recipe_are_drawn(tmp_path):
    recipe = Recipe(
        seed=1,
        size_px=32,
        images_per_class=2,
        mirrored_per_class=1,
        jpeg_quality=80,
        crack_width_px=(1, 2),
        crack_darkness=(0.5, 0.9),
        look_alikes_crack=0,
        look_alikes_intact=0,
    )
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    dataset = Dataset(source=tmp_path / "tiny.yaml")
    (batch,) = batches_of(dataset.source)
    entries = list(entries_of(dataset, batch, LIMITS))
    assert [(entry.path, entry.content) for entry in entries] == list(draw(recipe))
    assert {label_of(entry.path, DEFAULT_LABELS) for entry in entries} == {"crack", "intact"}
