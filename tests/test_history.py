"""Decisions are kept, in order and for ever; after a crash, alias and history agree; of two at once, one goes on."""

import json
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_promotion_records import dead_process, promoted, went_back

from pipeline.errors import UnavailableError
from pipeline.registry import history as history_module
from pipeline.registry import tracking
from pipeline.registry.history import History
from pipeline.registry.promotion_records import LEASE_S

MODEL = "cracks"


@pytest.fixture
def store(tmp_path, empty_store, monkeypatch):
    """A store with versions 1 to 3 of a model, of which none is in production; a function that sets the clock."""
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow" / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    client, _ = tracking.connect()
    client.create_registered_model(MODEL)
    for _ in range(3):
        client.create_model_version(MODEL, source=(tmp_path / "model").as_uri())
    clock = SimpleNamespace(now_s=1_800_000_000.0)
    return SimpleNamespace(client=client, clock=clock, history=History(client, MODEL, lambda: clock.now_s))


def leave_open(store, record, *, moved, process=None):
    """Do as a process does that dies between opening a record and closing it."""
    opened = store.history._create(replace(record, outcome="open"))
    if process:
        store.client.set_tag(opened.run_id, "process", process)
    if moved:
        store.client.set_registered_model_alias(MODEL, "production", record.version)
    return opened


def states(store):
    return {
        str(version.version): version.tags.get("state")
        for version in store.client.search_model_versions(f"name = '{MODEL}'")
    }


def test_a_promotion_moves_the_alias_and_is_kept_with_all_that_it_was_based_on(store, tmp_path):
    evidence = tmp_path / "evidence.txt"
    evidence.write_text("seen")
    kept = store.history.move(promoted("1", best="1"), {"rules": [{"name": "floors"}]}, [evidence])
    assert store.history.production() == "1"
    assert store.history.records() == [kept]
    assert (kept.outcome, kept.time, kept.by) == ("promoted", "2027-01-15T08:00:00+00:00", "Ada")
    assert store.history.details(kept) == {"rules": [{"name": "floors"}]}
    files = {file.path for file in store.client.list_artifacts(kept.run_id)}
    assert files == {"decision.json", "evidence.txt"}
    assert states(store) == {"1": "production", "2": None, "3": None}


def test_decisions_are_read_newest_first_and_each_version_says_its_state(store):
    store.history.move(promoted("1"), {})
    for seconds, record in enumerate(
        [
            replace(promoted("2", "1"), outcome="refused", text="floors: f1 0.1 is under 0.9"),
            replace(promoted("3", "1"), outcome="pending"),
        ]
    ):
        store.clock.now_s += 1 + seconds
        store.history.save(record, {})
    assert [record.outcome for record in store.history.records()] == ["pending", "refused", "promoted"]
    assert store.history.records()[1].text == "floors: f1 0.1 is under 0.9"
    assert states(store) == {"1": "production", "2": "refused", "3": "pending"}
    assert store.history.production() == "1"


def test_a_promotion_retires_what_was_there_and_a_rollback_marks_it(store):
    store.history.move(promoted("1"), {})
    store.history.move(promoted("2", "1"), {})
    assert states(store) == {"1": "retired", "2": "production", "3": None}
    store.history.move(went_back("1", "2"), {})
    assert states(store) == {"1": "production", "2": "rolled back", "3": None}


def test_a_decision_whose_run_was_deleted_in_the_page_of_mlflow_still_counts(store):
    kept = store.history.move(promoted("1"), {})
    store.client.delete_run(kept.run_id)
    assert [record.version for record in store.history.moves()] == ["1"]


def test_a_text_that_is_too_long_for_mlflow_is_cut_in_the_list_alone(store):
    kept = store.history.save(replace(promoted("1"), outcome="refused", text="x" * 20_000), {"text": "x" * 20_000})
    (read,) = store.history.records()
    assert read.text == "x" * 5000
    assert len(store.history.details(kept)["text"]) == 20_000


@pytest.mark.parametrize("record", [promoted("2", "1"), went_back("2", "1")])
@pytest.mark.parametrize("moved", [True, False])
def test_what_a_dead_process_left_open_reads_by_where_the_alias_stands_and_is_closed_so(store, record, moved):
    store.client.set_registered_model_alias(MODEL, "production", "1")
    leave_open(store, record, moved=moved, process=dead_process())
    expected = record.moved_to if moved else "withdrawn"
    (read,) = store.history.records()
    assert read.outcome == expected
    assert states(store)["2"] is None  # reading writes nothing
    store.history.close_interrupted()
    (closed,) = store.history._stored()
    assert closed.outcome == expected
    assert store.client.get_run(closed.run_id).info.status == "FINISHED"
    assert states(store)["2"] == ("production" if moved else None)


def test_what_another_machine_left_open_is_closed_when_its_time_is_over(store):
    leave_open(store, promoted("1"), moved=False, process=json.dumps({"pid": 7, "started_s": 0.0, "host": "elsewhere"}))
    store.clock.now_s += LEASE_S - 1
    store.history.close_interrupted()
    assert [record.outcome for record in store.history.records()] == ["open"]
    store.clock.now_s += 1
    store.history.close_interrupted()
    assert [record.outcome for record in store.history._stored()] == ["withdrawn"]


def test_a_promotion_gives_way_to_one_that_was_opened_before(store):
    leave_open(store, replace(promoted("2"), by="Grace"), moved=False)
    store.clock.now_s += 1
    with pytest.raises(
        UnavailableError, match="promotion of version 2 by Grace is under way since 2027-01-15T08:00:00"
    ):
        store.history.move(promoted("1"), {})
    assert store.history.production() is None
    assert [record.outcome for record in store.history.records()] == ["withdrawn", "open"]


def test_a_promotion_waits_for_one_that_was_opened_after_it_to_give_way(store, monkeypatch):
    later = leave_open(store, promoted("2"), moved=False)
    store.clock.now_s -= 1
    is_waiting = threading.Event()
    monkeypatch.setattr(history_module.time, "sleep", lambda seconds: (is_waiting.set(), done.wait(10)))
    done = threading.Event()
    mover = threading.Thread(target=store.history.move, args=(promoted("1"), {}))
    mover.start()
    assert is_waiting.wait(10)
    assert store.history.production() is None
    store.history._close(later, "withdrawn")
    done.set()
    mover.join(10)
    assert store.history.production() == "1"


def test_a_decision_about_a_production_that_has_changed_since_moves_nothing(store):
    store.history.move(promoted("1"), {})
    with pytest.raises(UnavailableError, match="Production is version 1 now, the decision was about version None"):
        store.history.move(promoted("2", previous=None), {})
    assert store.history.production() == "1"
    assert {record.outcome for record in store.history.records()} == {"promoted", "withdrawn"}


def test_who_was_too_slow_to_get_a_turn_moves_nothing(store, monkeypatch):
    def slow(*_):
        store.clock.now_s += LEASE_S / 2 + 1

    monkeypatch.setattr(store.history, "_attach", slow)
    with pytest.raises(UnavailableError, match="too slow"):
        store.history.move(promoted("1"), {})
    assert store.history.production() is None


def test_evidence_that_cannot_be_kept_moves_nothing(store, tmp_path):
    with pytest.raises(OSError, match="missing"):
        store.history.move(promoted("1"), {}, [tmp_path / "missing"])
    assert store.history.production() is None
    assert [record.outcome for record in store.history.records()] == ["withdrawn"]
