import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from archive_writer import LIMITS, limits, write_tar, write_zip
from image_bombs import jpeg_of_scans

from pipeline.data import dataset_reader
from pipeline.data.archives import Entry
from pipeline.data.dataset_reader import check_labels, describe, entries_of, pack_dataset
from pipeline.data.demo import Recipe, draw
from pipeline.data.images import IMAGES_FILE, INVENTORY_FILE, PackedImages, read_quarantine
from pipeline.data.path_metadata import DEFAULT_LABELS, label_of
from pipeline.data.sources import batches_of
from pipeline.errors import CracksError
from pipeline.params import Dataset

UNREADABLE = {"is_image": False, "is_left_out": False}


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def files(draw_tile, encode):
    """A data set with two images and a text."""
    return {
        "Positive/wall.jpg": encode(draw_tile(0, cracked=True)),
        "Negative/deck.jpg": encode(draw_tile(2)),
        "notes.txt": b"Taken in spring.\n",
    }


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


def test_an_unknown_label_folder_is_refused_and_earlier_output_is_kept(bad_source, files, tmp_path):
    source = bad_source(files | {"Rusty/one.jpg": files["Negative/deck.jpg"]})
    out = tmp_path / "datasets" / "walls"
    out.mkdir(parents=True)
    (out / IMAGES_FILE).write_text("of a former run")
    with pytest.raises(CracksError, match=r"folders without a known label: 'Rusty'\. Known are Positive, Negative"):
        pack_dataset(Dataset(source=source), LIMITS, out)
    assert below(out.parent) == ["walls", f"walls/{IMAGES_FILE}"]
    assert (out / IMAGES_FILE).read_text() == "of a former run"


def test_an_archive_without_an_image_is_refused_and_leaves_no_output(bad_source, tmp_path):
    source = bad_source({f"Positive/{number}.jpg": b"text" for number in range(3)} | {"notes.txt": b"text"})
    expected = (
        r"walls\.zip contains no image that can be read \(4 other files:\n  3 files: not an image\n  1 file: not a "
    )
    with pytest.raises(CracksError, match=expected):
        pack_dataset(Dataset(source=source), LIMITS, tmp_path / "datasets" / "walls")
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
        pack_dataset(dataset, LIMITS, tmp_path / "datasets" / "walls")
    assert not (tmp_path / "datasets").exists()


def test_no_more_than_five_unknown_folders_are_shown():
    paths = [f"folder {number}/{image}.jpg" for number in range(7) for image in range(3)]
    with pytest.raises(CracksError, match=r"label: 'folder 0', 'folder 1', .*'folder 4' \.\.\.\. Known are Riss\."):
        check_labels(paths, Dataset(source=Path("walls.zip"), labels={"Riss": "crack"}))


def test_no_unlabelled_path_is_no_error():
    check_labels([], Dataset(source=Path("walls.zip")))


def test_an_image_of_another_mode_is_described_by_how_it_is_stored(encode, draw_tile):
    row = describe(("a.png", encode(draw_tile(0)[:, :40, 0], "PNG"), 10**6))
    assert (row["mode"], row["height"], row["width"]) == ("L", 64, 40)


def test_an_image_of_too_many_pixels_is_detected_from_its_header(encode):
    content = encode(np.zeros((1000, 1001, 3), np.uint8), "PNG")
    assert describe(("a.png", content, 1_001_000))["width"] == 1001
    row = describe(("a.png", content[:100], 1_000_000))
    remedy = "Raise ingest.max_image_megapixels in params.yaml, or divide it"
    assert row["reason"] == f"1001 x 1000 px is more than 1 megapixels. {remedy}"


def test_an_image_that_would_take_minutes_to_decode_is_left_out_with_the_reason():
    row = describe(("a.jpg", jpeg_of_scans(200_000, size_px=2000), 10**8))
    assert row == {"path": "a.jpg", "reason": "it has more than 100 scans", "is_left_out": False}


@pytest.fixture
def run_ingest(tmp_path):
    """Return a function that ingests a source and returns its inventory and quarantine, both read from disk."""

    def run(source, allowed=LIMITS):
        pack_dataset(Dataset(source=source), allowed, tmp_path / "out")
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
        {"batch": "2024-09.tar", "path": "Negative/b.jpg", "reason": "not an image"} | UNREADABLE
    ]


def test_an_id_depends_on_batch_and_path_and_does_not_change_when_images_are_added(
    tmp_path, run_ingest, encode, draw_tile
):
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
    monkeypatch.setattr(dataset_reader, "CHUNK_FILES", 2)
    tile, large = encode(draw_tile(0)), encode(np.zeros((1001, 1000, 3), np.uint8))
    named = [("../a", tile), ("Positive/1.jpg", tile), ("Positive/2.jpg", large), ("C:/b", tile), ("Positive/3", b"")]
    write_zip(tmp_path / "walls.zip", dict([*named, ("Positive/4.jpg", tile), ("Positive/5.jpg", bytes(10**6 + 1))]))
    images, quarantine = run_ingest(tmp_path / "walls.zip", limits(max_image_megapixels=1, max_file_mb=1))
    assert images["path"].tolist() == ["Positive/1.jpg", "Positive/4.jpg"]
    assert quarantine.set_index("path")["reason"].to_dict() == {
        "../a": "its path leads out of the archive",
        "C:/b": "its path leads out of the archive",
        "Positive/2.jpg": "1000 x 1001 px is more than 1 megapixels. Raise ingest.max_image_megapixels in params.yaml, "
        "or divide it",
        "Positive/3": "not a picture (without a suffix)",
        "Positive/5.jpg": "larger than 1 MB",
    }


def test_a_line_break_in_a_name_breaks_no_row_of_the_quarantine(tmp_path, run_ingest, encode, draw_tile):
    (tmp_path / "walls" / "Positive").mkdir(parents=True)
    (tmp_path / "walls" / "Positive" / "a.jpg").write_bytes(encode(draw_tile(0)))
    for name in ("b\rc.jpg", "d\ne.jpg"):
        (tmp_path / "walls" / "Positive" / name).write_bytes(b"text")
    _, quarantine = run_ingest(tmp_path / "walls")
    assert quarantine.to_dict("records") == [
        {"batch": "", "path": f"Positive/{name}", "reason": "not an image"} | UNREADABLE
        for name in (r"b\rc.jpg", r"d\ne.jpg")
    ]


def test_entries_come_in_chunks_that_are_small_in_number_and_in_memory(monkeypatch):
    monkeypatch.setattr(dataset_reader, "CHUNK_FILES", 3)
    monkeypatch.setattr(dataset_reader, "CHUNK_BYTES", 10)
    sizes = [1, 1, 1, 4, 7, 11, 0, None, 0, 1]
    entries = [Entry(str(number), None if size is None else bytes(size)) for number, size in enumerate(sizes)]
    chunks = [[int(entry.path) for entry in chunk] for chunk in dataset_reader._chunks(iter(entries))]
    assert chunks == [[0, 1, 2], [3, 4], [5], [6, 7, 8], [9]]


def test_a_source_above_a_limit_is_refused_and_leaves_no_output(bad_source, files, run_ingest, tmp_path):
    with pytest.raises(CracksError, match=r"walls\.zip is refused: it contains more than 2 files.* ingest\.max_files"):
        run_ingest(bad_source(files), limits(max_files=2))
    assert not (tmp_path / "out").exists()


def killed_for_its_memory(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_decoder_that_the_kernel_kills_ends_the_run_with_a_reason_and_leaves_no_output(
    bad_source, files, run_ingest, tmp_path, monkeypatch
):
    source = bad_source(files)
    monkeypatch.setattr(dataset_reader, "describe", killed_for_its_memory)
    with pytest.raises(CracksError, match="was killed; the machine may have too little memory"):
        run_ingest(source)
    assert not (tmp_path / "out").exists()


IN_A_NEW_PROCESS = """
import os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from pipeline.data import dataset_reader
from pipeline.params import Dataset, Limits

class Pool(ProcessPoolExecutor):
    def map(self, *arguments, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        results = super().map(*arguments, **settings)
        print(len(self._processes))
        return results

dataset_reader.ProcessPoolExecutor = Pool
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
dataset_reader.pack_dataset(Dataset(source=sys.argv[1]), Limits.model_validate_json(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_request_to_end_while_processes_start_waits_until_they_have(bad_source, files, tmp_path):
    arguments = [str(bad_source(files)), LIMITS.model_dump_json(), str(tmp_path / "out")]
    ended = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS, *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (143, "1\n"), ended.stderr  # a process for one task
    assert "Traceback" not in ended.stderr
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


def test_a_label_that_params_correct_is_changed_and_the_first_one_is_kept(bad_source, files, tmp_path):
    name = hashlib.sha256(files["Negative/deck.jpg"]).hexdigest()[:16]
    pack_dataset(Dataset(source=bad_source(files), corrected_labels={name: "crack"}), LIMITS, tmp_path / "out")
    inventory = pd.read_parquet(tmp_path / "out" / INVENTORY_FILE)
    labels = inventory.set_index("path")[["label", "first_label"]].T.to_dict("list")
    assert labels == {"Positive/wall.jpg": ["crack", "crack"], "Negative/deck.jpg": ["crack", "intact"]}


def test_a_corrected_label_of_an_image_that_is_not_there_is_refused(bad_source, files, tmp_path):
    dataset = Dataset(source=bad_source(files), corrected_labels={"0" * 16: "crack"})
    with pytest.raises(
        CracksError, match=r"walls\.zip has no image of the id 0{16}, which corrected_labels names\. Copy"
    ):
        pack_dataset(dataset, LIMITS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
