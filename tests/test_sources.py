import errno
import os
import re

import pytest
from archive_writer import LIMITS, TARS, limits, write_folder, write_source, write_tar, write_zip

from pipeline.data.archives import Entry
from pipeline.data.sources import Batch, batches_of, find_images, read_batch, read_image_file
from pipeline.errors import CracksError

FILES = {
    "Negative/00001.jpg": b"intact one",
    "Negative/deep/er/00002.jpg": b"intact two" * 300,
    "Positive/00001.jpg": b"cracked one",
    "Positive/Übersicht.jpg": b"",
    "notes.txt": b"not an image, but a file",
}
SYSTEM = "a thumbnail, a deleted file or another file of the system"
HIDDEN = "hidden, or in a hidden folder"
LEFT_OUT = {
    "$RECYCLE.BIN/Positive/00001.jpg": SYSTEM,
    ".DS_Store": HIDDEN,
    ".Trash-1000/files/Positive/00001.jpg": HIDDEN,
    "Negative/@eaDir/00001.jpg/SYNOPHOTO_THUMB_M.jpg": SYSTEM,
    "Negative/Thumbs.db": SYSTEM,
    "Negative/desktop.ini": SYSTEM,
    "Positive/._00001.jpg": HIDDEN,
    "Positive/.ipynb_checkpoints/00001-checkpoint.jpg": HIDDEN,
    "Positive/00001.cracks.jpg": "a picture that `cracks map` has drawn",
    "Positive/00001.mask.png": "a picture that `cracks map` has drawn",
    "Positive/__MACOSX/00001.jpg": SYSTEM,
    "__MACOSX/Positive/00001.jpg": SYSTEM,
}


def entries(source, allowed=LIMITS):
    return [entry for batch in batches_of(source) for entry in read_batch(batch, allowed)]


def files_in(source):
    found = entries(source)
    assert [entry.reason for entry in found] == [""] * len(found)
    return [(entry.path, entry.content) for entry in found]


@pytest.mark.parametrize("kind", ["folder", "zip", *TARS])
def test_every_kind_of_source_gives_the_same_files(tmp_path, kind):
    found = files_in(write_source(tmp_path, kind, FILES))
    assert len(found) == len(FILES)
    assert dict(found) == FILES


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_files_come_sorted_by_path_however_they_were_put_in(tmp_path, kind):
    backwards = dict(reversed(FILES.items()))
    assert [path for path, _ in files_in(write_source(tmp_path, kind, backwards))] == sorted(FILES)


def test_a_tar_is_read_in_its_own_order(tmp_path):
    backwards = dict(reversed(FILES.items()))
    assert files_in(write_source(tmp_path, "tar.gz", backwards)) == list(backwards.items())


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_hidden_files_thumbnails_and_overlays_are_left_out_with_the_reason(tmp_path, kind):
    found = entries(write_source(tmp_path, kind, FILES | dict.fromkeys(LEFT_OUT, b"junk")))
    assert {entry.path: entry.content for entry in found if not entry.is_left_out} == FILES
    assert {entry.path: entry.reason for entry in found if entry.is_left_out} == LEFT_OUT
    assert {entry.content for entry in found if entry.is_left_out} == {None}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_names_that_only_look_as_if_they_were_left_out_are_kept(tmp_path, kind):
    files = {"MACOSX/a.jpg": b"a", "my Thumbs.db.jpg": b"b", "DS_Store/c.jpg": b"c", "a.cracks/d.jpg": b"d"}
    assert dict(files_in(write_source(tmp_path, kind, files))) == files


def test_a_tar_that_was_made_inside_its_folder_gives_the_same_paths(tmp_path):
    write_tar(tmp_path / "source.tar", FILES, "w", prefix="./")
    assert dict(files_in(tmp_path / "source.tar")) == FILES


def test_what_an_archive_is_follows_from_its_content_not_from_its_name(tmp_path):
    write_zip(tmp_path / "download", FILES)
    assert dict(files_in(tmp_path / "download")) == FILES


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_reading_leaves_nothing_on_disk(tmp_path, kind):
    source = write_source(tmp_path, kind, FILES)
    files_in(source)
    assert list(tmp_path.rglob("*")) == [source]


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(CracksError, match=r"The source .*metu\.zip does not exist\. Put the archive there"):
        batches_of(tmp_path / "metu.zip")


@pytest.mark.parametrize("content", [b"", b"This is a text.\n", b"\xff\xd8\xff\xe0 a photo"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "metu.zip").write_bytes(content)
    with pytest.raises(CracksError, match=r"metu\.zip is neither a folder nor a \.zip, \.tar or \.rar archive"):
        entries(tmp_path / "metu.zip")


def test_an_archive_and_a_folder_without_any_are_one_batch(tmp_path):
    for kind in ("zip", "folder"):
        source = write_source(tmp_path, kind, FILES)
        assert batches_of(source) == [Batch("", source)]


def test_archives_in_a_folder_are_batches_in_the_order_of_their_names_and_loose_files_the_oldest(tmp_path):
    folder = tmp_path / "incoming"
    write_folder(folder, {"Positive/first.jpg": b"1", "Positive/a.txt.zip/no archive.jpg": b"0"})
    write_zip(folder / "2024-10.zip", {"Positive/third.jpg": b"3"})
    write_tar(folder / "2024-09.TAR.GZ", {"Positive/second.jpg": b"2"}, "w:gz")
    write_zip(folder / "._2024-09.zip", {"Positive/junk.jpg": b"4"})
    (folder / "folder.zip").mkdir()
    batches = batches_of(folder)
    assert [batch.name for batch in batches] == ["", "2024-09.TAR.GZ", "2024-10.zip"]
    assert [[entry.content for entry in read_batch(batch, LIMITS)] for batch in batches] == [
        [None, b"0", b"1"],
        [b"2"],
        [b"3"],
    ]


def test_a_batch_whose_name_is_not_unicode_has_a_name_that_can_be_written(tmp_path):
    with open(os.fsencode(tmp_path) + b"/mai \xe9.zip", "wb") as file:  # noqa: PTH123
        write_zip(file, {"Positive/a.jpg": b"a"})
    (_, batch) = batches_of(tmp_path)
    assert batch.name == r"mai \udce9.zip"
    assert [entry.content for entry in read_batch(batch, LIMITS)] == [b"a"]


def test_a_file_whose_name_is_not_unicode_has_a_path_that_can_be_written(tmp_path):
    (tmp_path / "Positive").mkdir()
    with open(os.fsencode(tmp_path) + b"/Positive/caf\xe9.jpg", "wb"):  # noqa: PTH123
        pass
    assert files_in(tmp_path) == [(r"Positive/caf\udce9.jpg", b"")]


def test_links_to_files_are_followed_wherever_they_lead_and_others_have_a_reason(tmp_path):
    folder = tmp_path / "incoming"
    write_folder(folder, {"Positive/a.jpg": b"a"})
    write_folder(tmp_path / "cache", {"b.jpg": b"b"})  # as DVC leaves a data set whose cache is on another disk
    links = {"absolute": tmp_path / "cache" / "b.jpg", "relative": "../../cache/b.jpg", "within": "a.jpg"}
    for name, target in (links | {"broken": "nowhere", "loop": "loop.jpg"}).items():
        (folder / "Positive" / f"{name}.jpg").symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")
    assert {entry.path: entry.content or entry.reason for entry in entries(folder)} == {
        "Positive/a.jpg": b"a",
        "Positive/absolute.jpg": b"b",
        "Positive/relative.jpg": b"b",
        "Positive/within.jpg": b"a",
        "Positive/broken.jpg": "No such file or directory",
        "Positive/loop.jpg": "Too many levels of symbolic links",
        "pipe.jpg": "a device or a pipe, not a file",
    }


@pytest.fixture
def linked(tmp_path):
    """A folder of decks with links to a folder of walls, to itself, to what is above it, and to its own subfolder."""
    write_folder(tmp_path / "walls", {"Positive/w.jpg": b"w", "deep/Negative/x.jpg": b"x"})
    (tmp_path / "walls" / "back").symlink_to(tmp_path / "set")
    write_folder(tmp_path / "set", {"Decks/Positive/d.jpg": b"d"})
    links = {"Walls": "../walls", "a loop": ".", "above": "../..", "again": "Decks", "walls again": "../walls/deep"}
    for name, target in links.items():
        (tmp_path / "set" / name).symlink_to(target)
    return tmp_path / "set"


def test_linked_folders_are_read_once_and_loops_end(linked, caplog):
    found = {entry.path: entry.content or entry.reason for entry in entries(linked)}
    not_followed = ["Walls/back", "a loop", "above", "again", "walls again"]
    reason = "a link to a folder that is read already, or that contains this one"
    assert found == dict.fromkeys(not_followed, reason) | {
        "Decks/Positive/d.jpg": b"d",
        "Walls/Positive/w.jpg": b"w",
        "Walls/deep/Negative/x.jpg": b"x",
    }
    assert f"DVC does not notice when files behind a link to a folder change: {linked / 'Walls'}." in caplog.text


def test_photos_of_linked_folders_are_found(linked):
    names = ["Decks/Positive/d.jpg", "Walls/Positive/w.jpg", "Walls/deep/Negative/x.jpg"]
    assert find_images([linked]) == [linked / name for name in names]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", {"a.jpg": b"a", "locked/b.jpg": b"b"})
    list_folder = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert entries(tmp_path / "set") == [
        Entry("a.jpg", b"a"),
        Entry("locked", None, "a folder that cannot be read: Permission denied", is_left_out=True),
    ]


def test_a_file_in_a_folder_that_is_too_large_is_named_and_not_read(tmp_path):
    write_folder(tmp_path / "incoming", {"a.jpg": bytes(1_000_000), "b.jpg": bytes(1_000_001)})
    found = entries(tmp_path / "incoming", limits(max_file_mb=1))
    assert found == [Entry("a.jpg", bytes(1_000_000)), Entry("b.jpg", None, "larger than 1 MB")]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_files": 2}, r"refused: it contains more than 2 files\. .* raise ingest\.max_files in params"),
        ({"max_total_mb": 1}, r"refused: it contains more than 1 MB\. .* raise ingest\.max_total_mb in params"),
    ],
)
def test_a_folder_above_a_limit_is_refused(tmp_path, changes, match):
    write_folder(tmp_path / "incoming", {f"{number}.jpg": bytes(400_000) for number in range(3)})
    assert len(entries(tmp_path / "incoming", limits(max_files=3, max_total_mb=2))) == 3
    with pytest.raises(CracksError, match=match):
        entries(tmp_path / "incoming", limits(**changes))


def test_pictures_are_found_below_folders_and_what_is_left_out_is_counted_with_the_reason(tmp_path, caplog):
    caplog.set_level("INFO", "pipeline")
    pictures = ["b.JPG", "a.png", "deep/c.tiff", "d.jfif", "e.jpe", "f.webp", "g.HEIC", "h.gif", "i.dng"]
    others = ["notes.txt", "b.JPG.xml", "c.xml", "README", "site/maps/b.cracks.jpg", "._b.JPG", ".trash/b.JPG"]
    write_folder(tmp_path / "bridge", dict.fromkeys([*pictures, *others], b"") | {"IMG_0001": b"\xff\xd8\xff\xe0"})
    (tmp_path / "bridge" / "folder.jpg").mkdir()
    (tmp_path / "bridge" / "j").symlink_to("nowhere")
    (tmp_path / "bridge" / "k").symlink_to("k" * 300)  # no file can have this name
    found = find_images([tmp_path / "bridge"])
    assert found == [tmp_path / "bridge" / name for name in sorted([*pictures, "j", "k", "IMG_0001"])]
    assert caplog.messages == [
        "Left out:\n  2 files: hidden, or in a hidden folder\n  2 files: not a picture (.xml)"
        "\n  1 file: not a picture (without a suffix)\n  1 file: not a picture (.txt)"
        "\n  1 file: a picture that `cracks map` has drawn"
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.HEIC", r"^a HEIC picture, which is not read\. Convert it to JPEG, on a Mac by `sips "),
        ("a.dng", r"^a raw picture, which is not read\. Export it as JPEG from the software of the camera$"),
        ("a.jp2", r"^a JPEG 2000 picture, which is not read\. Convert it to JPEG or PNG$"),
        ("gone.jpg", "^No such file or directory$"),
        ("pipe.jpg", "^a device or a pipe, not a file$"),
    ],
)
def test_a_file_that_is_not_read_has_the_reason(tmp_path, name, reason):
    for picture in ("a.HEIC", "a.dng", "a.jp2"):
        (tmp_path / picture).write_bytes(b"a picture")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert re.search(reason, str(read_image_file(tmp_path / name)))


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


def test_the_error_about_a_folder_without_images_lists_the_suffixes(tmp_path):
    (tmp_path / "notes.txt").touch()
    expected = r"No image found\. Looked for \.apng, \.bmp, \.jfif, .* Left out:\n  1 file: not a picture \(\.txt\)"
    with pytest.raises(CracksError, match=expected):
        find_images([tmp_path])
