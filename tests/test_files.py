import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import replacing, replacing_folder, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run_dry(path):
    path.write_text("ne")
    raise RuntimeError("out of ink")


def test_a_file_is_written_with_the_folders_above_it_and_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a" / "b" / "note.txt", "Größe\n")
    assert (tmp_path / "a" / "b" / "note.txt").read_bytes() == "Größe\n".encode()
    assert names(tmp_path / "a" / "b") == ["note.txt"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_on_failure_the_old_file_stays_and_the_partial_one_is_deleted(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="out of ink"), replacing(path) as partial:
        run_dry(partial)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_a_file_that_was_never_written_is_an_error_and_the_old_one_stays(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError, match=re.escape("note.txt")), replacing(path):
        pass
    assert path.read_text() == "old"


def test_the_partial_file_is_hidden_beside_the_target_so_that_renaming_is_one_step(tmp_path):
    with replacing(tmp_path / "note.txt") as partial:
        partial.write_text("new")
        assert partial.parent == tmp_path
        assert partial.name.startswith(".note.txt.")


def test_a_file_that_is_linked_into_a_cache_is_not_changed_there(tmp_path):
    cached, path = tmp_path / "cached", tmp_path / "note.txt"
    cached.write_text("old")
    os.link(cached, path)
    write_text(path, "new")
    assert (cached.read_text(), path.read_text()) == ("old", "new")


def test_json_is_indented_keeps_its_letters_and_ends_the_line(tmp_path):
    write_json(tmp_path / "scores.json", {"name": "Brücke", "f1": 0.5})
    text = (tmp_path / "scores.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "Brücke",\n  "f1": 0.5\n}\n'


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, [1])
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"scores": {1, 2}})
    assert json.loads(path.read_text()) == [1]
    assert names(tmp_path) == ["scores.json"]


def test_a_folder_takes_the_place_of_the_old_one_with_nothing_left_of_it(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").touch()
    with replacing_folder(path) as partial:
        (partial / "fresh").touch()
        assert names(path) == ["stale"]
    assert names(path) == ["fresh"]
    assert names(tmp_path) == ["model"]


def test_a_folder_is_made_with_the_folders_above_it(tmp_path):
    with replacing_folder(tmp_path / "a" / "b") as partial:
        (partial / "file").touch()
    assert names(tmp_path / "a") == ["b"]


def test_on_failure_the_old_folder_stays_and_the_partial_one_is_deleted(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError, match="out of ink"), replacing_folder(path) as partial:
        run_dry(partial / "half")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_folder_starts_empty_though_a_killed_process_left_one(tmp_path):
    with replacing_folder(tmp_path / "model") as partial:
        left_over = partial
    left_over.mkdir()
    (left_over / "half").touch()
    with replacing_folder(tmp_path / "model") as partial:
        assert names(partial) == []


@pytest.mark.parametrize(("replace", "write"), [(replacing, Path.touch), (replacing_folder, Path.exists)])
def test_threads_that_write_the_same_at_once_do_not_disturb_each_other(tmp_path, replace, write):
    with replace(tmp_path / "same") as one, replace(tmp_path / "same") as other:
        write(one)
        write(other)
    assert names(tmp_path) == ["same"]


@pytest.fixture
def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(("replace", "write"), [(replacing, Path.touch), (replacing_folder, Path.exists)])
def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path, ended_process, replace, write):
    host = socket.gethostname()
    folder = tmp_path / f".model.0badcafe-{ended_process}@{host}.partial"
    folder.mkdir()
    (folder / "half").touch()
    (tmp_path / f".scores.json.0badcafe-{ended_process}@{host}.partial").touch()
    running = [
        f".model.0badcafe-{os.getppid()}@{host}.partial",
        f".of another container.0badcafe-{ended_process}@other.partial",  # which may use a number that is free here
        ".of another program.partial",
    ]
    for name in running:
        (tmp_path / name).touch()
    with replace(tmp_path / "new") as partial:
        write(partial)
    assert names(tmp_path) == sorted([*running, "new"])


def test_what_was_left_half_written_and_cannot_be_removed_stops_nothing(tmp_path, ended_process):
    left_over = tmp_path / f".model.0badcafe-{ended_process}@{socket.gethostname()}.partial"
    (tmp_path / "elsewhere").mkdir()
    left_over.symlink_to("elsewhere")  # `rmtree` refuses links
    write_text(tmp_path / "note.txt", "new")
    assert names(tmp_path) == sorted([left_over.name, "elsewhere", "note.txt"])


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "🧱" * 63], ids=["1 byte", "2 bytes", "4 bytes"])
def test_the_longest_names_can_be_written_on_a_host_of_the_longest_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 64)
    write_text(tmp_path / name, "new")
    assert names(tmp_path) == [name]


FULL = [
    (errno.ENOSPC, "No space left on device"),
    ("Not enough free space to write 24 bytes after offset 8",),
    ("24 requested and 8 written",),
]


@pytest.mark.parametrize("replace", [replacing, replacing_folder])
@pytest.mark.parametrize("arguments", FULL)
def test_an_error_of_a_full_disk_names_the_file(tmp_path, replace, arguments):
    with pytest.raises(OSError, match="No space left on device") as raised, replace(tmp_path / "scores.json"):
        raise OSError(*arguments)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "scores.json"))


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "scores.json"):
        (tmp_path / "no such file").read_text()
    assert raised.value.filename == str(tmp_path / "no such file")


def test_an_error_without_a_number_keeps_its_text(tmp_path):
    with pytest.raises(OSError, match=r"^unable to open the model$"), replacing(tmp_path / "scores.json"):
        raise OSError("unable to open the model")
