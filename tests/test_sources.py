import io
import re
import tarfile
import zipfile

import pytest

from pipeline.errors import CracksError
from pipeline.sources import find_images, read_files

FILES = {
    "Negative/00001.jpg": b"intact one",
    "Negative/deep/er/00002.jpg": b"intact two" * 300,
    "Positive/00001.jpg": b"cracked one",
    "Positive/Übersicht.jpg": b"",
    "notes.txt": b"not an image, but a file",
}
JUNK = [
    "__MACOSX/Positive/00001.jpg",
    "Positive/__MACOSX/00001.jpg",
    ".DS_Store",
    "Positive/._00001.jpg",
    "Negative/Thumbs.db",
    "Negative/desktop.ini",
]
TARS = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    (path / "empty folder").mkdir()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.mkdir("empty folder")
        for name, content in files.items():
            opened.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def write_tar(path, files, mode, prefix=""):
    with tarfile.open(path, mode) as opened:
        folder = tarfile.TarInfo(prefix + "empty folder")
        folder.type = tarfile.DIRTYPE
        opened.addfile(folder)
        for name, content in files.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))


@pytest.fixture
def write_source(tmp_path):
    """Return a function that writes a source of the wanted kind and returns its path."""

    def write(kind, files):
        path = tmp_path / ("source" if kind == "folder" else f"source.{kind}")
        if kind == "folder":
            write_folder(path, files)
        elif kind == "zip":
            write_zip(path, files)
        else:
            write_tar(path, files, TARS[kind])
        return path

    return write


@pytest.mark.parametrize("kind", ["folder", "zip", *TARS])
def test_every_kind_of_source_gives_the_same_files(write_source, kind):
    assert dict(read_files(write_source(kind, FILES))) == FILES


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_files_come_sorted_by_path_however_they_were_put_in(write_source, kind):
    backwards = dict(reversed(FILES.items()))
    assert [path for path, _ in read_files(write_source(kind, backwards))] == sorted(FILES)


def test_a_tar_is_read_in_its_own_order(write_source):
    backwards = dict(reversed(FILES.items()))
    assert list(read_files(write_source("tar.gz", backwards))) == list(backwards.items())


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_what_file_managers_leave_behind_is_skipped(write_source, kind):
    assert dict(read_files(write_source(kind, FILES | dict.fromkeys(JUNK, b"junk")))) == FILES


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_names_that_only_look_like_junk_are_kept(write_source, kind):
    files = {"MACOSX/a.jpg": b"a", "my Thumbs.db.jpg": b"b", "DS_Store/c.jpg": b"c"}
    assert dict(read_files(write_source(kind, files))) == files


def test_a_tar_that_was_made_inside_its_folder_gives_the_same_paths(tmp_path):
    write_tar(tmp_path / "source.tar", FILES, "w", prefix="./")
    assert dict(read_files(tmp_path / "source.tar")) == FILES


def test_links_in_a_tar_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "source.tar", "w") as opened:
        link = tarfile.TarInfo("Positive/00001.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        opened.addfile(link)
    assert list(read_files(tmp_path / "source.tar")) == []


def test_what_an_archive_is_follows_from_its_content_not_from_its_name(tmp_path):
    write_zip(tmp_path / "download", FILES)
    assert dict(read_files(tmp_path / "download")) == FILES


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_reading_leaves_nothing_on_disk(write_source, tmp_path, kind):
    source = write_source(kind, FILES)
    list(read_files(source))
    assert list(tmp_path.rglob("*")) == [source]


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(CracksError, match=r"The source .*metu\.zip does not exist\. Put the archive there"):
        list(read_files(tmp_path / "metu.zip"))


@pytest.mark.parametrize("content", [b"", b"This is a text.\n", b"\xff\xd8\xff\xe0 a photo"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "metu.zip").write_bytes(content)
    with pytest.raises(CracksError, match=r"metu\.zip is neither a folder nor a \.zip or \.tar archive"):
        list(read_files(tmp_path / "metu.zip"))


def outcome(source):
    """All files of the source, or None where it is refused."""
    try:
        return dict(read_files(source))
    except CracksError as error:
        assert re.search(r"cannot be read: .+ Download or make it again|is neither a folder", str(error))  # noqa: PT017
        return None


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_an_archive_that_is_cut_anywhere_is_refused_unless_nothing_is_missing(write_source, kind):
    source = write_source(kind, FILES)
    content = source.read_bytes()
    # in a tar, the last blocks are padding
    outcomes = []
    for length in range(0, len(content), max(1, len(content) // 100)):
        source.write_bytes(content[:length])
        outcomes.append(outcome(source))
    assert outcomes.count(None) >= 0.3 * len(outcomes)
    assert all(files in (None, FILES) for files in outcomes)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_damaged_byte_is_noticed_unless_it_changes_no_file(write_source, kind):
    source = write_source(kind, FILES)
    content = source.read_bytes()
    end = content.index(b"PK\x01\x02") if kind == "zip" else len(content)  # the table behind the files has no checksum
    outcomes = []
    for position in range(0, end, max(1, end // 100)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        source.write_bytes(damaged)
        outcomes.append(outcome(source))
    assert outcomes.count(None) >= 0.5 * len(outcomes)
    assert all(files in (None, FILES) for files in outcomes)


def test_a_tar_whose_second_header_is_damaged_is_refused(write_source):
    source = write_source("tar", FILES)
    content = bytearray(source.read_bytes())
    content[content.index(b"Negative/deep")] ^= 0xFF
    source.write_bytes(content)
    with pytest.raises(CracksError, match=r"source\.tar cannot be read: it is damaged"):
        list(read_files(source))


def test_a_tar_that_ends_between_two_files_is_refused(write_source):
    source = write_source("tar", FILES)
    content = source.read_bytes()
    source.write_bytes(content[: content.index(b"Positive/00001.jpg")])
    with pytest.raises(CracksError, match=r"source\.tar cannot be read: it is cut short"):
        list(read_files(source))


def test_a_zip_with_a_password_is_refused(write_source):
    source = write_source("zip", {"a.jpg": b"secret"})
    content = bytearray(source.read_bytes())
    for signature, offset in ((b"PK\x03\x04\x14\x00\x00\x00\x08", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(re.escape(signature), bytes(content)):
            content[match.start() + offset] |= 1  # the flag of an encrypted entry
    source.write_bytes(content)
    with pytest.raises(CracksError, match=r"source\.zip cannot be read: .*encrypted, password required"):
        list(read_files(source))


def test_images_are_found_below_folders_by_their_suffix_and_sorted(tmp_path):
    files = ["b.JPG", "a.png", "deep/c.tiff", "notes.txt", "sheet.csv", "._b.JPG", "__MACOSX/b.JPG"]
    write_folder(tmp_path / "bridge", dict.fromkeys(files, b""))
    (tmp_path / "bridge" / "folder.jpg").mkdir()
    found = find_images([tmp_path / "bridge"])
    assert found == [tmp_path / "bridge" / name for name in ("a.png", "b.JPG", "deep/c.tiff")]


def test_a_file_that_is_given_by_its_path_is_taken_whatever_its_suffix(tmp_path):
    (tmp_path / "IMG_0001").touch()
    assert find_images([tmp_path / "IMG_0001"]) == [tmp_path / "IMG_0001"]


def test_paths_keep_the_order_in_which_they_are_given(tmp_path):
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).touch()
    paths = [tmp_path / "b.jpg", tmp_path / "a.jpg"]
    assert find_images(paths) == paths


def test_an_image_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CracksError, match=r"deck\.jpg does not exist\. Give images"):
        find_images([tmp_path / "deck.jpg"])


def test_a_folder_without_images_is_an_error_that_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CracksError, match=r"No image found\. Looked for \.bmp, \.jpeg, \.jpg"):
        find_images([tmp_path])
