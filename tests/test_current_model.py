"""The current model is verified before it is swapped in, kept on disk, and never replaced by a broken one."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from conftest import wait_until
from cracked_photos import cracked_photo
from tiny_model import write_blind_tracer, write_tiny_model

from pipeline.errors import CracksError, UnavailableError
from pipeline.inference.out_of_distribution import DETECTOR_FILE
from pipeline.inference.served import GOLDEN_FILE, WEIGHTS_FILE
from pipeline.params import Map
from serving.current_model import LAST_GOOD_FILE, ModelHolder
from serving.wanted_version import Version

CUT = Map(tile_px=64, overlap=0, model_mm_per_px=None)
NOW = datetime(2026, 11, 1, tzinfo=UTC)
ONE = Version("cracks", "1", "run-1", trained_on="metu", is_demo=False, is_production=True)
TWO = replace(ONE, number="2", run_id="run-2")


class Shelf:
    """A registry in a folder: a folder a version."""

    def __init__(self, folder):
        self.folder = folder
        self.version = None
        self.is_away = False
        self.n_fetched = 0

    def put(self, version, **model):
        write_tiny_model(self.folder / version.number, **model)
        self.version = version

    def wanted(self):
        if self.is_away:
            raise UnavailableError("The registry does not answer.")
        return self.version

    def fetch(self, version, folder):
        self.n_fetched += 1
        if self.is_away:
            raise UnavailableError("It cannot be fetched.")
        shutil.copytree(self.folder / version.number, folder, dirs_exist_ok=True)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def kept(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    return folder


@pytest.fixture
def holder(shelf, kept):
    return ModelHolder(shelf, kept, 60, CUT, None, lambda: NOW)


def started(holder):
    """Return a holder after its start, which follows no more."""
    holder.start()
    holder.stop()
    return holder


def folders(kept):
    return sorted(path.name for path in kept.iterdir())


def test_the_wanted_model_is_held_and_kept_on_disk(holder, shelf, kept):
    shelf.put(ONE)
    holder.poll()
    assert (holder.current.version, holder.current.since) == (ONE, NOW)
    assert folders(kept) == ["cracks-1-run-1", LAST_GOOD_FILE]


def test_no_model_answers_before_a_killed_server_would_find_it_again(holder, shelf, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("serving.current_model.write_json", full)
    shelf.put(ONE)
    with pytest.raises(OSError, match="No space left"):
        holder.poll()
    assert holder.current is None


def test_a_model_that_is_wanted_already_is_not_fetched_again(holder, shelf):
    shelf.put(ONE)
    holder.poll()
    holder.poll()
    assert shelf.n_fetched == 1


def test_another_model_takes_its_place_and_its_folder(holder, shelf, kept):
    shelf.put(ONE)
    holder.poll()
    shelf.put(TWO)
    holder.poll()
    assert holder.current.version == TWO
    assert folders(kept) == ["cracks-2-run-2", LAST_GOOD_FILE]


def test_lines_are_of_the_tracer_of_the_model_or_the_shipped_one_if_it_has_none(holder, shelf):
    pixels, _ = cracked_photo(300, 300, [[(0, 150), (300, 150)]], 140, 4)
    n_lines = []
    for version in (ONE, TWO, replace(ONE, number="3", run_id="run-3")):
        shelf.put(version)
        if version is TWO:
            write_blind_tracer(shelf.folder / "2")
        holder.poll()
        n_lines.append(len(holder.current.mapper.map(pixels).lines))
    assert n_lines == [1, 0, 1]


def test_an_equal_number_of_another_registry_is_another_model(holder, shelf):
    shelf.put(ONE)
    holder.poll()
    shelf.put(replace(ONE, run_id="another"))
    holder.poll()
    assert shelf.n_fetched == 2


def test_a_promotion_of_the_held_model_fetches_nothing(holder, shelf):
    shelf.put(replace(ONE, is_production=False))
    holder.poll()
    model = holder.current.model
    shelf.version = ONE
    holder.poll()
    assert holder.current.version == ONE
    assert holder.current.model is model
    assert shelf.n_fetched == 1


def break_weights(folder):
    (folder / WEIGHTS_FILE).write_bytes(b"")


def break_golden(folder):
    (folder / GOLDEN_FILE).write_bytes(b"PK")


def remove_graph(folder):
    (folder / "openvino.xml").unlink()


def break_concrete(folder):
    (folder / DETECTOR_FILE).write_bytes(b"")


def break_tracer(folder):
    (folder / "tracer").mkdir()


@pytest.mark.parametrize("damage", [break_weights, break_golden, remove_graph, break_concrete, break_tracer])
def test_a_broken_model_is_refused_once_and_the_old_one_stays(holder, shelf, kept, caplog, damage):
    shelf.put(ONE)
    holder.poll()
    shelf.put(TWO)
    damage(shelf.folder / "2")
    holder.poll()
    holder.poll()
    assert holder.current.version == ONE
    assert (holder.refused, holder.n_refusals, shelf.n_fetched) == (TWO, 1, 2)
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "cracks version 2 (production) is refused" in record.message
    assert "Still serving cracks version 1" in record.message
    assert folders(kept) == ["cracks-1-run-1", LAST_GOOD_FILE]


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_a_model_whose_golden_answers_differ_is_refused(holder, shelf, error):
    shelf.put(ONE, golden_error=error)
    holder.poll()
    assert (holder.current, holder.refused) == (None, ONE)


def test_a_refusal_is_forgotten_when_the_alias_moves_back(holder, shelf):
    shelf.put(ONE)
    holder.poll()
    shelf.put(TWO, golden_error=1)
    holder.poll()
    shelf.version = ONE
    holder.poll()
    assert holder.refused is None


def test_the_last_good_model_is_served_while_the_registry_is_away(holder, shelf, kept, caplog):
    shelf.put(ONE)
    holder.poll()
    shelf.is_away = True
    other = started(ModelHolder(shelf, kept, 60, CUT, None, lambda: NOW))
    assert other.current.version == ONE
    assert other.is_registry_unavailable
    assert "The registry does not answer. Trying again every 30 s." in caplog.text


def test_a_production_version_that_was_deleted_leaves_the_model_that_is_served_and_is_logged_once(
    holder, shelf, kept, caplog
):
    def deleted():
        raise CracksError("Version 1, which was in production, has been deleted.")

    shelf.put(ONE)
    holder.poll()
    shelf.wanted = deleted
    other = started(ModelHolder(shelf, kept, 0.02, CUT, None, lambda: NOW))
    wait_until(lambda: "has been deleted. Trying again" in caplog.text)
    assert other.current.version == ONE
    assert "Traceback" not in caplog.text
    assert caplog.text.count("has been deleted") == 1


def test_a_fetch_that_fails_leaves_nothing_and_is_tried_again(holder, shelf, kept):
    shelf.put(ONE)
    shelf.is_away = True
    shelf.wanted = lambda: ONE
    with pytest.raises(UnavailableError):
        holder.poll()
    assert folders(kept) == []
    shelf.is_away = False
    holder.poll()
    assert holder.current.version == ONE


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"name": "cracks"}), "null"])
def test_a_damaged_record_of_the_last_good_model_is_ignored(holder, shelf, kept, content):
    (kept / LAST_GOOD_FILE).write_text(content)
    shelf.put(ONE)
    assert started(holder).current.version == ONE


def test_leftovers_of_a_killed_process_are_removed_at_the_start(holder, kept):
    (kept / ".cracks-1-run-1.99.partial").mkdir()
    started(holder)
    assert folders(kept) == []


def test_the_starter_answers_only_until_there_is_another(shelf, kept, tmp_path):
    write_tiny_model(tmp_path / "starter")
    holder = ModelHolder(shelf, kept, 60, CUT, tmp_path / "starter", lambda: NOW)
    assert started(holder).current.version.name == "starter"
    shelf.put(ONE)
    holder.poll()
    assert holder.current.version == ONE
    again = started(ModelHolder(shelf, kept, 60, CUT, tmp_path / "starter", lambda: NOW))
    assert again.current.version == ONE


def test_the_starter_does_not_replace_a_registered_model_that_is_unavailable(shelf, kept, tmp_path):
    write_tiny_model(tmp_path / "starter")
    shelf.put(ONE)
    shelf.is_away = True
    holder = ModelHolder(shelf, kept, 60, CUT, tmp_path / "starter", lambda: NOW)
    assert started(holder).current is None
    shelf.is_away = False
    holder.poll()
    assert holder.current.version == ONE
