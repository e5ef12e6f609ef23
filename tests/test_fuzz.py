"""Damaged images and archives by the hundred: each gives what it should or a reason, soon, and touches nothing."""

import shutil
import tarfile
import time
import warnings
import zipfile

import numpy as np
import pytest
from archive_writer import limits, rar5, write_tar, write_zip
from PIL import ExifTags, Image

from pipeline.data.archives import Entry
from pipeline.data.dataset_reader import describe
from pipeline.data.sources import Batch, read_batch
from pipeline.errors import CracksError

FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]
N_IMAGES = 250  # of each format
N_ARCHIVES = 80  # of each kind
MAX_SECONDS = 5  # for one file; each takes milliseconds
COLUMNS = {"path", "sha256", "height", "width", "mode", "format", "n_bytes", "fingerprint"}
COLUMNS |= {"brightness", "contrast", "sharpness", "dark_share", "bright_share"}
FILES = {"Positive/a.jpg": b"crack" * 40, "../b.jpg": b"intact" * 300, "Negative/Übersicht.jpg": b"", "notes.txt": b"."}


def flip(rng, content, _):
    """Flip bits, half of the time only in the header."""
    damaged = np.frombuffer(content, np.uint8).copy()
    end = rng.choice([len(damaged), min(len(damaged), 400)])
    for _ in range(rng.choice([1, 4, 30])):
        damaged[rng.integers(end)] ^= 1 << rng.integers(8)
    return damaged.tobytes()


def cut(rng, content, _):
    """Take away a piece: the end, the beginning or something between."""
    start, stop = sorted(rng.integers(len(content) + 1, size=2))
    return (content[:start], content[stop:], content[:start] + content[stop:])[rng.integers(3)]


def overwrite(rng, content, _):
    """Write 1 to 8 times the same byte, such as a number of 4,294,967,295."""
    start, n = rng.integers(len(content)), rng.integers(1, 9)
    return content[:start] + bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * n + content[start + n :]


def splice(rng, content, others):
    """Go on with a piece of another file."""
    other = others[rng.integers(len(others))]
    start, stop = sorted(rng.integers(len(other) + 1, size=2))
    at = rng.integers(len(content) + 1)
    return content[:at] + other[start:stop] + content[at + (stop - start) * rng.integers(2) :]


def mutants(contents, n, seed):
    """Yield n damaged forms of each content, the same every time."""
    rng = np.random.default_rng(seed)
    for content in contents:
        for number in range(n):
            yield (flip, cut, overwrite, splice)[number % 4](rng, content, contents)


@pytest.fixture(scope="module")
def images(draw_tile, encode):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "camera" * 20
    made = [encode(draw_tile(seed), name, exif=exif) for seed, name in enumerate(FORMATS)]
    return [*made, encode(draw_tile(9), "TIFF", compression="tiff_lzw")]


@pytest.mark.timeout(120)
def test_a_damaged_image_gives_a_row_or_a_reason(images):
    n_rows = n_reasons = 0
    for content in mutants(images, N_IMAGES, seed=0):
        started = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in production: Pillow warns, and goes on
            row = describe(("a.jpg", content, 1_000_000))
        assert time.monotonic() - started < MAX_SECONDS
        if "reason" in row:
            assert row.keys() == {"path", "reason", "is_left_out"}
            assert row["reason"].strip()
            n_reasons += 1
        else:
            assert row.keys() == COLUMNS
            assert row["height"] * row["width"] <= 1_000_000
            assert all(np.isfinite(row[name]) for name in ("brightness", "contrast", "sharpness"))
            n_rows += 1
    assert n_rows + n_reasons == N_IMAGES * len(images) >= 1000
    assert min(n_rows, n_reasons) > 100


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    made = {}
    write_zip(folder / "a.zip", FILES)
    made["zip"] = (folder / "a.zip").read_bytes()
    with zipfile.ZipFile(folder / "b.zip", "w") as opened:
        opened.writestr("inner.zip", made["zip"])
        opened.writestr("Positive/a.jpg", b"crack")
    made["zip in zip"] = (folder / "b.zip").read_bytes()
    for kind, mode in {"tar": "w", "tar.gz": "w:gz"}.items():
        write_tar(folder / f"a.{kind}", FILES, mode)
        made[kind] = (folder / f"a.{kind}").read_bytes()
    with tarfile.open(folder / "pax.tar", "w", format=tarfile.PAX_FORMAT) as opened:
        entry = tarfile.TarInfo("Positive/" + "lang/" * 60 + "ü.jpg")
        entry.pax_headers = {"comment": "x" * 300, "GNU.sparse.name": "a"}
        opened.addfile(entry)
    made["pax"] = (folder / "pax.tar").read_bytes()
    made["rar"] = rar5(FILES)
    return made


def tree(folder):
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*"))


KINDS = ["zip", "zip in zip", "tar", "tar.gz", "pax", "rar"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_gives_entries_or_an_error_and_touches_nothing(archives, tmp_path, monkeypatch, kind):
    if kind == "rar" and shutil.which("bsdtar") is None:
        pytest.skip("bsdtar is not installed: no .rar is read")
    workplace, temporary = tmp_path / "a" / "b", tmp_path / "temporary"
    workplace.mkdir(parents=True)
    temporary.mkdir()
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    source = workplace / "source"
    contents = [archives[kind], *(content for name, content in archives.items() if name != kind)]
    outcomes = {"entries": 0, "refused": 0}
    rng = np.random.default_rng(KINDS.index(kind))
    for number in range(N_ARCHIVES):
        source.write_bytes((flip, cut, overwrite, splice)[number % 4](rng, contents[0], contents))
        before = tree(tmp_path)
        message = str(source)
        started = time.monotonic()
        try:
            entries = list(read_batch(Batch("", source), limits(max_total_mb=20, max_file_mb=5)))
            outcomes["entries"] += 1
        except CracksError as error:
            entries, message = [], str(error)
            outcomes["refused"] += 1
        assert time.monotonic() - started < MAX_SECONDS
        assert tree(tmp_path) == before
        assert str(source) in message
        for entry in entries:
            assert isinstance(entry, Entry)
            assert (entry.content is None) == bool(entry.reason)
            entry.path.encode()
            assert entry.content is None or not entry.path.startswith(("/", "../"))
    assert sum(outcomes.values()) == N_ARCHIVES
    assert min(outcomes.values()) > 0
