import errno
import gzip
import io
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import time
import tracemalloc
import unicodedata
import zipfile
from contextlib import contextmanager
from functools import partial

import pandas as pd
import pytest
from archive_bombs import (
    tar_of_a_sparse_map,
    tar_of_comments,
    tar_of_digits,
    tar_of_nested_comments,
    tar_of_sparse_pieces,
    zip_in_zip,
    zip_of_empty_blocks,
    zip_of_many_names,
    zip_of_small_files,
)
from archive_writer import LIMITS, TARS, limits, rar5, write_source, write_tar, write_zip

from pipeline.data import archives
from pipeline.data.archives import Entry, SourceUsage, read_archive
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.images import INVENTORY_FILE, read_quarantine
from pipeline.errors import CracksError
from pipeline.params import Dataset
from pipeline.safe_text import printable

needs_bsdtar = pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar is not installed: no .rar is read")
KINDS = ["zip", *TARS, pytest.param("rar", marks=needs_bsdtar)]

FILES = {
    "Negative/00001.jpg": b"intact one",
    "Negative/deep/er/00002.jpg": b"intact two" * 300,
    "Positive/00001.jpg": b"cracked one",
    "Positive/Übersicht 裂缝 💥.jpg": b"",
    "notes.txt": b"not an image, but a file",
}
LEADS_OUT = "its path leads out of the archive"
NO_FILE = "a link or a device, not a file"
ZEROS = bytes(12_000_000)


def entries(archive, allowed=LIMITS):
    return list(read_archive(archive, SourceUsage(archive, allowed)))


def files_in(archive, allowed=LIMITS):
    found = entries(archive, allowed)
    assert [entry.reason for entry in found] == [""] * len(found)
    return {entry.path: entry.content for entry in found}


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def zip_of(path, *files, method=zipfile.ZIP_DEFLATED):
    """Write a zip of (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in files:
            opened.writestr(name, content)
    return path


def tar_of(path, *entries, mode="w", **settings):
    """Write a tar of (TarInfo, content)."""
    with tarfile.open(path, mode, **settings) as opened:
        for entry, content in entries:
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_archive_gives_the_same_entries(tmp_path, kind):
    assert files_in(write_source(tmp_path, kind, FILES)) == FILES


# Entries that lead out of the archive, or are no files


@pytest.mark.parametrize("kind", ["zip", "tar", pytest.param("rar", marks=needs_bsdtar)])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("../evil.jpg", "../evil.jpg"),
        ("Positive/../../evil.jpg", "Positive/../../evil.jpg"),
        ("/tmp/evil.jpg", "/tmp/evil.jpg"),  # noqa: S108
        ("C:\\evil.jpg", "C:/evil.jpg"),
        ("..\\evil.jpg", "../evil.jpg"),
        ("\\\\server\\evil.jpg", "//server/evil.jpg"),
    ],
)
def test_an_entry_that_leads_out_is_reported_and_nothing_is_written(tmp_path, kind, name, path):
    source = write_source(tmp_path, kind, {name: b"evil", "Positive/a.jpg": b"good"})
    found = entries(source)
    assert Entry("Positive/a.jpg", b"good") in found
    assert [(entry.content, entry.reason) for entry in found if entry.path == path] == [(None, LEADS_OUT)]
    assert below(tmp_path) == [source.name]


@pytest.mark.parametrize("name", ["Positive/a..b.jpg", "Positive/12:30.jpg", "Positive/C:/a.jpg"])
def test_a_path_that_only_looks_as_if_it_led_out_is_used(tmp_path, name):
    assert files_in(write_source(tmp_path, "zip", {name: b"good"})) == {name: b"good"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_link_or_device_in_a_zip_is_named_and_not_used(tmp_path, kind):
    entry = zipfile.ZipInfo("Positive/a.jpg")
    entry.external_attr = (kind | 0o644) << 16
    source = zip_of(tmp_path / "source.zip", (entry, "/etc/hostname"))
    assert entries(source) == [Entry("Positive/a.jpg", None, NO_FILE)]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_named_and_not_used(tmp_path, kind):
    entry = tarfile.TarInfo("Positive/a.jpg")
    entry.type, entry.linkname = kind, "/etc/hostname"
    source = tar_of(tmp_path / "source.tar", (entry, b""))
    assert entries(source) == [Entry("Positive/a.jpg", None, NO_FILE)]


def encrypt(source):
    """Set the flag of an encrypted entry wherever zipfile has put one."""
    content = bytearray(source.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(re.escape(signature), bytes(content)):
            content[match.start() + offset] |= 1
    source.write_bytes(content)


@pytest.mark.parametrize("name", ["Positive/a.jpg", "inner.zip", "inner.rar"])
def test_an_encrypted_entry_is_named_and_not_used(tmp_path, name):
    source = zip_of(tmp_path / "source.zip", (name, b"secret"))
    encrypt(source)
    assert entries(source) == [
        Entry(name, None, "protected by a password. Unpack it, and use the folder as the source")
    ]


# Bombs. Each must be refused at once, and without its content in memory.


@contextmanager
def frugally():
    """Fail if the block takes more than 5 seconds of the CPU, or 30 MB of memory."""
    tracemalloc.start()
    started = time.process_time()
    yield
    took = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 5
    assert peak < 30_000_000


@pytest.fixture
def frugal():
    """Fail a test that takes more than 5 seconds, or 30 MB of memory beside what it makes itself."""
    with frugally():
        yield


def pack_zeros(path, mode="w:gz"):
    """Write a tar with one file of 400 MB of zeros, a piece at a time."""
    entry = tarfile.TarInfo("zeros.jpg")
    entry.size = 400_000_000
    with tarfile.open(path, mode, compresslevel=1) as opened:
        opened.addfile(entry, _Zeros(entry.size))
    return path


class _Zeros(io.RawIOBase):
    """A file of so many zeros."""

    def __init__(self, n_bytes):
        self.left = n_bytes

    def read(self, n=-1):
        n = min(self.left, n)
        self.left -= n
        return bytes(n)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_file_that_expands_too_much_is_refused(tmp_path, kind):
    source = write_source(tmp_path, kind, {"zeros.jpg": ZEROS})
    with pytest.raises(CracksError, match=r"it expands more than 200 times .* raise ingest\.max_expansion in"):
        entries(source)
    assert files_in(source, limits(max_expansion=1_000_000)) == {"zeros.jpg": ZEROS}


def test_a_small_file_may_expand_by_any_ratio(tmp_path):
    source = write_source(tmp_path, "zip", {"grey.bmp": bytes(9_000_000)})
    assert files_in(source) == {"grey.bmp": bytes(9_000_000)}


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_too_many_bytes_is_refused(tmp_path, kind):
    files = {f"{number}.jpg": bytes(400_000) for number in range(3)}
    source = write_source(tmp_path, kind, files)
    assert files_in(source, limits(max_total_mb=2)) == files
    with pytest.raises(CracksError, match=r"source\..* contains more than 1 MB\. .* raise ingest\.max_total_mb in"):
        entries(source, limits(max_total_mb=1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_too_many_files_is_refused(tmp_path, kind):
    source = write_source(tmp_path, kind, {f"{number}.jpg": b"" for number in range(50)})
    assert len(files_in(source, limits(max_files=51))) == 50  # the empty folder counts
    with pytest.raises(CracksError, match=r"source\..* contains more than 49 files\. .* raise ingest\.max_files in"):
        entries(source, limits(max_files=49))


def test_a_zip_whose_table_of_contents_exceeds_a_limit_is_refused_before_unpacking(tmp_path, monkeypatch):
    source = write_source(tmp_path, "zip", {f"{number}.jpg": b"" for number in range(50)})
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(CracksError, match="contains more than 49 files"):
        next(read_archive(source, SourceUsage(source, limits(max_files=49))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_too_large_is_named_and_the_others_are_used(tmp_path, kind):
    source = write_source(tmp_path, kind, {"a.jpg": bytes(1_000_001), "b.jpg": bytes(1_000_000)})
    found = entries(source, limits(max_file_mb=1))
    assert found == [Entry("a.jpg", None, "larger than 1 MB"), Entry("b.jpg", bytes(1_000_000))]


def gzip_zeros(path, start, n_mb):
    with gzip.open(path, "wb", 4) as opened:
        opened.write(start)
        for _ in range(n_mb):
            opened.write(bytes(1_000_000))
    return path


@pytest.fixture
def zeros_behind_a_tar(tmp_path):
    tar_of(tmp_path / "plain.tar", (tarfile.TarInfo("Positive/a.jpg"), b"good"))
    return gzip_zeros(tmp_path / "source.tar.gz", (tmp_path / "plain.tar").read_bytes(), 300)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({}, r"it expands more than 200 times .* raise ingest\.max_expansion in"),
        ({"max_expansion": 10**6}, r"contains more than 100 MB\. .* raise ingest\.max_total_mb in"),
    ],
)
def test_endless_zeros_after_a_tar_are_refused(zeros_behind_a_tar, frugal, changes, match):
    with pytest.raises(CracksError, match=match):
        entries(zeros_behind_a_tar, limits(**changes))


@pytest.fixture
def zeros_in_a_tar(tmp_path):
    return pack_zeros(tmp_path / "source.tar.gz")


def test_a_huge_file_in_a_tar_is_refused_before_it_is_read(zeros_in_a_tar, frugal):
    with pytest.raises(CracksError, match=r"contains more than 100 MB"):
        entries(zeros_in_a_tar)


@pytest.fixture(params=[tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def name_of_300_mb(tmp_path, request):
    header = tarfile.TarInfo("long name")
    header.type, header.size = request.param, 300_000_000
    return gzip_zeros(tmp_path / "source.tar.gz", header.tobuf(), 300)


def test_a_tar_whose_file_has_a_name_of_300_mb_is_refused(name_of_300_mb, frugal):
    with pytest.raises(CracksError, match=r"source\.tar\.gz"):
        entries(name_of_300_mb)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_that_makes_tarfile_read_backwards_is_refused(tmp_path, kind):
    header = tarfile.TarInfo("a.jpg")
    tar_of(tmp_path / "source.tar", (header, b"good"))
    header.type, header.size = kind, -1024
    with (tmp_path / "source.tar").open("r+b") as file:
        file.seek(1024)
        file.write(header.tobuf(tarfile.GNU_FORMAT) * 2)
    with pytest.raises(CracksError, match=r"source\.tar cannot be read: it is damaged"):
        entries(tmp_path / "source.tar")


def test_a_tar_with_a_negative_size_in_its_metadata_is_refused(tmp_path):
    entry = tarfile.TarInfo("a.jpg")
    entry.pax_headers = {"size": "-1024"}
    source = tar_of(tmp_path / "source.tar", (entry, b"good"), format=tarfile.PAX_FORMAT)
    with pytest.raises(CracksError, match=r"source\.tar"):
        entries(source)


def with_size(source, n_bytes):
    """Let a zip of one file say of it that it has so many bytes."""
    content = bytearray(source.read_bytes())
    struct.pack_into("<L", content, content.index(b"PK\x03\x04") + 22, n_bytes)
    struct.pack_into("<L", content, content.index(b"PK\x01\x02") + 24, n_bytes)
    source.write_bytes(content)
    return source


@pytest.fixture
def zip_that_lies(tmp_path):
    """Return a function that writes a zip of 100 MB that says it had 100 bytes."""

    def write(name):
        return with_size(zip_of(tmp_path / "source.zip", (name, bytes(100_000_000))), 100)

    return write


def test_a_zip_that_lies_about_a_size_is_not_unpacked_beyond_it(zip_that_lies):
    source = zip_that_lies("a.jpg")
    tracemalloc.start()
    found = entries(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [Entry("a.jpg", None, "damaged in the archive: Bad CRC-32 for file 'a.jpg'")]
    assert peak < 10_000_000


def test_a_zip_that_lies_about_an_archive_inside_is_refused(zip_that_lies):
    with pytest.raises(CracksError, match=r"source\.zip cannot be read: Bad CRC-32 for file 'inner\.zip'"):
        entries(zip_that_lies("inner.zip"))


@pytest.mark.parametrize(("method", "shown"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")])
@pytest.mark.parametrize("name", ["a.jpg", "inner.zip"])
def test_an_entry_that_zipfile_cannot_unpack_in_pieces_is_reported_and_not_used(tmp_path, method, shown, name):
    source = zip_of(tmp_path / "source.zip", (name, b"content"), method=method)
    reason = f"compressed by {shown}, not by Deflate. Unpack it, and use the folder as the source"
    assert entries(source) == [Entry(name, None, reason)]


def test_a_decompression_bomb_in_a_nested_archive_counts_for_its_source(tmp_path):
    write_zip(tmp_path / "inner.zip", {f"{number}.jpg": b"" for number in range(30)})
    inner = (tmp_path / "inner.zip").read_bytes()
    source = zip_of(tmp_path / "source.zip", ("1.zip", inner), ("2.zip", inner))
    assert len(entries(source, limits(max_files=64))) == 60
    with pytest.raises(CracksError, match=r"The source .*source\.zip is refused: it contains more than 63 files"):
        entries(source, limits(max_files=63))


# Damage


def outcome(source):
    """All files of the source, or None where it is refused."""
    try:
        found = entries(source)
    except CracksError as error:
        assert re.search(r"cannot be read: .+ Download or create it again|is neither a folder", str(error), re.S)  # noqa: PT017
        return None
    return {entry.path: entry.content for entry in found if entry.content is not None}


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_a_truncated_archive_is_refused_unless_nothing_is_missing(tmp_path, kind):
    source = write_source(tmp_path, kind, FILES)
    content = source.read_bytes()
    # in a tar, the last blocks are padding
    outcomes = []
    for length in range(0, len(content), max(1, len(content) // 100)):
        source.write_bytes(content[:length])
        outcomes.append(outcome(source))
    assert outcomes.count(None) >= 0.3 * len(outcomes)
    assert all(files in (None, FILES) for files in outcomes)


@needs_bsdtar
def test_a_rar_that_is_truncated_within_its_files_is_refused(tmp_path):
    source = tmp_path / "source.rar"
    content = rar5(FILES)
    start = content.index(b"intact one")
    for length in range(start, content.index(b"notes.txt"), 200):
        source.write_bytes(content[:length])
        with pytest.raises(CracksError, match=r"(?s)source\.rar cannot be read: \S.+\. Download or create it again"):
            entries(source)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_damaged_byte_is_noticed_unless_it_changes_no_file(tmp_path, kind):
    source = write_source(tmp_path, kind, FILES)
    content = source.read_bytes()
    outcomes = []
    for position in range(0, len(content), max(1, len(content) // 100)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        source.write_bytes(damaged)
        outcomes.append(outcome(source))
    assert outcomes.count(None) >= 0.5 * len(outcomes)
    assert all(files in (None, FILES) for files in outcomes)


def test_a_damaged_byte_in_a_zip_affects_only_the_file_that_it_is_in(tmp_path):
    source = write_source(tmp_path, "zip", FILES)
    content = source.read_bytes()
    n_lost = 0
    for position in range(content.index(b"PK\x01\x02")):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        source.write_bytes(damaged)
        found = entries(source)
        assert [entry.path for entry in found] == sorted(FILES)
        lost = [entry for entry in found if entry.content is None]
        assert len(lost) <= 1
        assert all(entry.reason.startswith("damaged in the archive: ") for entry in lost)
        assert all(entry.content == FILES[entry.path] for entry in found if entry not in lost)
        n_lost += len(lost)
    assert n_lost > 100


METADATA = "a file has more than 1 MB of metadata"
EXPANDS = r"it expands more than 200 times .* raise ingest\.max_expansion in"
BOMBS = {
    "a comment before each file": (tar_of_comments, 40, EXPANDS),
    "a global header before each file": (partial(tar_of_comments, kind=tarfile.XGLTYPE), 40, EXPANDS),
    "many headers before one file": (tar_of_nested_comments, 20, METADATA),
    "a list of pieces that goes on": (tar_of_sparse_pieces, 5, METADATA),
    "a map of a hundred million pieces": (tar_of_a_sparse_map, 3, METADATA),
    "a number of a million digits": (tar_of_digits, 999_000, "it is damaged"),
    "many small files in a zip": (partial(zip_of_small_files, n_bytes=1_000_000), 50, EXPANDS),
    "files of a zip that overlap": (partial(zip_of_empty_blocks, n_mb=1), 100, "cannot be read: its files overlap"),
    "a long table of contents": (zip_of_many_names, 50_000, "it contains more than 1,000 files"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BOMBS)
def test_everything_that_is_read_of_an_archive_counts(tmp_path, name):
    write, n, reason = BOMBS[name]
    source = write(tmp_path / "source", n)
    with frugally(), pytest.raises(CracksError, match=reason):
        entries(source)


def test_the_headers_of_a_tar_are_not_kept(tmp_path):
    source = tar_of_comments(tmp_path / "source.tar.gz", 60)
    with frugally():
        assert len(entries(source, limits(max_expansion=10_000))) == 61


def test_a_sparse_file_in_a_tar_is_named_and_not_used(tmp_path):
    subprocess.run(["truncate", "-s", "20M", "Positive.jpg"], cwd=tmp_path, check=True)
    subprocess.run(["tar", "--sparse", "-cf", "source.tar", "Positive.jpg"], cwd=tmp_path, check=True)
    assert entries(tmp_path / "source.tar") == [Entry("Positive.jpg", None, "a sparse file")]


def test_the_table_of_contents_of_a_zip_in_a_zip_is_counted_before_it_is_taken_apart(tmp_path):
    source = zip_in_zip(tmp_path / "outer.zip", zip_of_many_names(tmp_path / "inner.zip", 50_000))
    with frugally(), pytest.raises(CracksError, match="it contains more than 1,000 files"):
        entries(source)


def test_a_tar_whose_second_header_is_damaged_is_refused(tmp_path):
    source = write_source(tmp_path, "tar", FILES)
    content = bytearray(source.read_bytes())
    content[content.index(b"Negative/deep")] ^= 0xFF
    source.write_bytes(content)
    with pytest.raises(CracksError, match=r"source\.tar cannot be read: it is damaged"):
        entries(source)


def test_a_tar_that_ends_between_two_files_is_refused(tmp_path):
    source = write_source(tmp_path, "tar", FILES)
    content = source.read_bytes()
    source.write_bytes(content[: content.index(b"Positive/00001.jpg")])
    with pytest.raises(CracksError, match=r"source\.tar cannot be read: it is truncated"):
        entries(source)


def test_a_tar_with_endlessly_nested_metadata_is_refused(tmp_path):
    note = tarfile.TarInfo("note")
    note.type, note.size = tarfile.GNUTYPE_LONGNAME, 2
    (tmp_path / "source.tar").write_bytes((note.tobuf() + b"a\0".ljust(512, b"\0")) * 5000)
    with pytest.raises(CracksError, match=r"source\.tar"):
        entries(tmp_path / "source.tar")


# Names


NAMES = [
    "Positive/裂缝 трещина رشق.jpg",
    "Positive/e\u0301 and é.jpg",
    "Positive/\u202egpj.jpg",
    "Positive/two\nlines\r.jpg",
    'Positive/"quoted", with commas.jpg',
    "Positive/" + "long/" * 798 + "a.jpg",
    "Positive/a.jpg",
    "Positive/A.JPG",
    "positive/a.jpg",
    "Positive/NA",
    "Positive/ .jpg",
]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_names_of_any_kind_are_unchanged(tmp_path, kind):
    assert max(map(len, NAMES)) > 4000
    files = {name: name.encode() for name in NAMES}
    assert files_in(write_source(tmp_path, kind, files)) == files


@needs_bsdtar
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_of_any_kind_are_read_from_a_rar_in_any_locale(tmp_path, monkeypatch, locale):
    monkeypatch.setenv("LC_ALL", locale)
    composed = [unicodedata.normalize("NFC", name) for name in NAMES]  # as libarchive gives them
    files = {name: name.encode() for name in composed if len(name) < 2048}  # more RAR does not take
    assert files_in(write_source(tmp_path, "rar", files)) == files


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_bytes_of_a_name_that_is_not_unicode_are_escaped(tmp_path, tar_format):
    source = tmp_path / "source.tar"
    entry = tarfile.TarInfo(b"Positive/caf\xe9.jpg".decode("utf-8", "surrogateescape"))
    tar_of(source, (entry, b"good"), format=tar_format, errors="surrogateescape")
    assert files_in(source) == {r"Positive/caf\udce9.jpg": b"good"}


@pytest.fixture
def run_ingest(tmp_path):
    """Return a function that ingests a source and returns its inventory and quarantine, both read from disk."""

    def run(source):
        pack_dataset(
            Dataset(source=source, labels={"Positive": "crack", "positive": "crack"}), LIMITS, tmp_path / "out"
        )
        return pd.read_parquet(tmp_path / "out" / INVENTORY_FILE), read_quarantine(tmp_path / "out")

    return run


def test_names_of_any_kind_are_ingested(tmp_path, run_ingest, draw_tile, encode):
    tile = encode(draw_tile(0))
    latin = b"Positive/caf\xe9.jpg".decode("utf-8", "surrogateescape")
    good = [*NAMES, latin, "Positive/twice.jpg", "Positive/twice.jpg"]
    bad = [name.replace("ositive/", "ositive/bad ") for name in [*NAMES, latin]]
    named = [(tarfile.TarInfo(name), tile) for name in good] + [(tarfile.TarInfo(name), b"text") for name in bad]
    images, quarantine = run_ingest(tar_of(tmp_path / "source.tar", *named, errors="surrogateescape"))
    written_out = r"Positive/caf\udce9.jpg"
    assert images["path"].tolist() == [*NAMES, written_out, "Positive/twice.jpg"]
    assert images["id"].is_unique
    expected = [("Positive/twice.jpg", "its path occurs twice")]
    without_suffix = "Positive/bad NA"
    expected += [
        (printable(name), "not an image")
        for name in [*bad[:-1], r"Positive/bad caf\udce9.jpg"]
        if name != without_suffix
    ]
    expected += [(without_suffix, "not a picture (without a suffix)")]
    assert list(zip(quarantine["path"], quarantine["reason"], strict=True)) == expected


def test_a_path_that_occurs_twice_in_a_zip_is_read_twice_each_with_its_own_content(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        source = zip_of(tmp_path / "source.zip", ("Positive/a.jpg", b"first"), ("Positive/a.jpg", b"second"))
    assert entries(source) == [Entry("Positive/a.jpg", b"first"), Entry("Positive/a.jpg", b"second")]


def test_a_file_without_a_name_in_a_zip_is_skipped(tmp_path):
    nameless = zipfile.ZipInfo("x")
    nameless.filename = ""
    source = zip_of(tmp_path / "source.zip", (nameless, b"nameless"), ("Positive/a.jpg", b"good"))
    assert entries(source) == [Entry("Positive/a.jpg", b"good")]


# Archives in archives, and .rar


def test_files_of_archives_in_a_zip_are_read_as_if_they_were_in_the_zip(tmp_path):
    write_zip(tmp_path / "inner.zip", {"Positive/b.jpg": b"b"})
    write_tar(tmp_path / "inner.tar.gz", {"Positive/c.jpg": b"c"}, "w:gz")
    names = ("inner.zip", "inner.tar.gz")
    inner = [(f"b/{name}", (tmp_path / name).read_bytes()) for name in names]
    source = zip_of(tmp_path / "source.zip", ("Positive/a.jpg", b"a"), *inner)
    assert files_in(source) == {"Positive/a.jpg": b"a", "Positive/b.jpg": b"b", "Positive/c.jpg": b"c"}
    assert below(tmp_path) == ["inner.tar.gz", "inner.zip", "source.zip"]


def test_a_disk_that_is_full_is_no_damage_of_the_archive(tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = zip_in_zip(tmp_path / "outer.zip", zip_of_many_names(tmp_path / "inner.zip", 5))
    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(OSError, match="No space left on device"):
        entries(source)


def test_archives_are_read_one_level_deep(tmp_path):
    write_zip(tmp_path / "1.zip", {"Positive/a.jpg": b"a"})
    innermost = (tmp_path / "1.zip").read_bytes()
    zip_of(tmp_path / "2.zip", ("1.zip", innermost))
    source = zip_of(tmp_path / "3.zip", ("2.zip", (tmp_path / "2.zip").read_bytes()))
    assert files_in(source) == {"1.zip": innermost}


def test_a_broken_archive_in_a_zip_is_named_with_the_zip(tmp_path):
    write_tar(tmp_path / "inner.tar.gz", FILES, "w:gz")
    content = (tmp_path / "inner.tar.gz").read_bytes()
    source = zip_of(tmp_path / "source.zip", ("walls/inner.tar.gz", content[:-30]))
    with pytest.raises(CracksError, match=r"The archive walls/inner\.tar\.gz in .*source\.zip cannot be read: .+"):
        entries(source)


@needs_bsdtar
def test_a_rar_in_a_zip_is_read_and_leaves_nothing_on_disk(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    source = zip_of(tmp_path / "source.zip", ("Concrete Crack Images.rar", rar5(FILES)))
    assert files_in(source) == FILES
    assert below(tmp_path) == ["source.zip", "temporary"]


@pytest.mark.parametrize("is_inside", [True, False])
def test_without_bsdtar_the_error_about_a_rar_says_what_to_install(tmp_path, monkeypatch, is_inside):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    source = write_source(tmp_path, "rar", FILES)
    if is_inside:
        source = zip_of(tmp_path / "source.zip", ("Cracks.rar", source.read_bytes()))
    shown = r"^Cracks\.rar in .*source\.zip" if is_inside else r"source\.rar"
    with pytest.raises(CracksError, match=rf"{shown} is a \.rar archive, and .* apt-get install libarchive-tools"):
        entries(source)


@pytest.fixture
def pretend_bsdtar(tmp_path, monkeypatch):
    """Return a function that puts a script in the place of bsdtar, and note the processes that are started."""
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            started.append(self)

    def pretend(script):
        tool = tmp_path / "bsdtar"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda _: str(tool))
        monkeypatch.setattr(archives.subprocess, "Popen", Noted)
        return started

    return pretend


@pytest.mark.timeout(60)
def test_many_messages_of_bsdtar_do_not_block_it(tmp_path, pretend_bsdtar):
    write_tar(tmp_path / "inner.tar", FILES, "w")
    pretend_bsdtar(f"yes 'a warning' | head -n 50000 >&2; cat {tmp_path}/inner.tar")
    with pytest.raises(CracksError, match="cannot be read: a warning"):
        entries(write_source(tmp_path, "rar", FILES))


@pytest.mark.parametrize(
    ("script", "match"),
    [("exit 1", "cannot be read: .+Download"), ("echo much too short", "cannot be read: .+Download")],
)
def test_a_bsdtar_that_fails_without_a_message_is_an_error_too(tmp_path, pretend_bsdtar, script, match):
    pretend_bsdtar(script)
    with pytest.raises(CracksError, match=match):
        entries(write_source(tmp_path, "rar", FILES))


@pytest.mark.timeout(60)
def test_bsdtar_is_stopped_when_reading_stops(tmp_path, pretend_bsdtar):
    write_tar(tmp_path / "inner.tar", FILES, "w")
    started = pretend_bsdtar(f"cat {tmp_path}/inner.tar; exec sleep 600")
    source = write_source(tmp_path, "rar", FILES)
    reading = read_archive(source, SourceUsage(source, LIMITS))
    next(reading)
    reading.close()
    assert [process.returncode for process in started] == [-9]
