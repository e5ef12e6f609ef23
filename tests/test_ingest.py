import hashlib
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline import ingest
from pipeline.data.fingerprints import fingerprint
from pipeline.data.images import (
    IMAGES_FILE,
    INVENTORY_FILE,
    QUARANTINE_FILE,
    PackedImages,
    decode,
    image_statistics,
    read_quarantine,
    thumbnail,
)

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
        assert row[list(image_statistics(pixels))].to_dict() == image_statistics(pixels)
    assert inventory["format"].tolist() == ["JPEG", "JPEG", "PNG"]
    assert inventory["mode"].tolist() == ["RGB", "RGB", "RGB"]


def test_the_images_are_packed_end_to_end_in_the_order_of_the_inventory(ingested, inventory, files):
    assert (ingested / IMAGES_FILE).read_bytes() == b"".join(files[path] for path in inventory.index)
    images = PackedImages(ingested)
    assert [images.content(row) for row in range(len(inventory))] == [files[path] for path in inventory.index]


def test_what_cannot_be_read_is_in_quarantine_with_its_reason(ingested):
    quarantine = read_quarantine(ingested).set_index("path")["reason"]
    assert list(quarantine.index) == ["Positive/photo-1_tile-2.jpg", "Negative/NA", "notes.txt"]
    assert quarantine["notes.txt"] == "not a picture (.txt)"
    assert quarantine["Negative/NA"] == "not a picture (without a suffix)"
    assert quarantine["Positive/photo-1_tile-2.jpg"].startswith("image file is truncated")
