import json
import multiprocessing
import os
import re
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from test_drift import photos

from pipeline.errors import CracksError, RefusedError, UnavailableError
from pipeline.evaluation.bootstrap import scores_with_intervals
from pipeline.inbox import retraining
from pipeline.inbox.batches import RECORD, Taken, read_record, write_record
from pipeline.inbox.retraining import (
    clear_notification,
    commit,
    exclusive_lock,
    images_to_label,
    notify_once,
    overdue,
    push_results,
    record_training,
    store_batches,
    summary_message,
)
from pipeline.models.decision import Decision
from pipeline.monitoring import labelling
from pipeline.monitoring.monitored_model import MonitoredModel
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import Params
from pipeline.project import LOG_FOLDER
from pipeline.registry import tracking

ROOT = Path(__file__).parents[1]
BATCH = Taken("b.zip", "0001-b.zip", "site", "0" * 64, 1200, "2030-01-01T00:00:00+00:00", "test")


@pytest.fixture
def params():
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["datasets"] = {"site": {"source": "data/incoming/site"}}
    values["split"] |= {"train_on": ["site"]}
    values["retrain"] |= {"dataset": "site", "max_age_days": 180}
    return Params.model_validate(values)


def hold(root, held, release):
    with exclusive_lock(root):
        held.set()
        release.wait(60)


def test_one_process_at_a_time_holds_the_lock_and_a_killed_one_holds_it_no_more(tmp_path):
    context = multiprocessing.get_context("forkserver")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, release))
    other.start()
    assert held.wait(60)
    with pytest.raises(RefusedError, match="A retraining or `cracks batches` is running"), exclusive_lock(tmp_path):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):  # and again after it was given back
        pass


def test_a_child_process_does_not_keep_the_lock_of_its_parent(tmp_path):
    with exclusive_lock(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with exclusive_lock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def told(monkeypatch):
    """The titles of which someone was told; while `reached` is False nobody is reached."""
    told = SimpleNamespace(titles=[], reached=True)
    monkeypatch.setattr(retraining, "notify", lambda title, lines: told.titles.append(title) or told.reached)
    return told


def test_the_same_is_told_once_and_what_reached_nobody_again(tmp_path, told):
    told.reached = False
    notify_once(tmp_path, "age", "old", ["a"])
    told.reached = True
    for lines in (["a"], ["a"], ["b"]):
        notify_once(tmp_path, "age", "old", lines)
    notify_once(tmp_path, "failure", "old", ["b"])
    assert told.titles == ["old"] * 4


def test_details_are_made_only_to_be_told_and_make_no_message_another_one(tmp_path, told, monkeypatch):
    made, sent = [], []
    monkeypatch.setattr(retraining, "notify", lambda title, lines: sent.append(lines) or True)
    for _ in range(3):
        notify_once(tmp_path, "age", "old", ["a"], lambda: made.append(1) or [f"detail {len(made)}"])
    assert sent == [["a", "detail 1"]]
    assert made == [1]


def test_what_has_passed_is_told_again_when_it_comes_again(tmp_path, told):
    notify_once(tmp_path, "age", "old", ["a"])
    for _ in range(2):
        notify_once(tmp_path, "failure", "failed", ["away"])
    clear_notification(tmp_path, "failure")
    clear_notification(tmp_path, "failure")
    notify_once(tmp_path, "failure", "failed", ["away"])
    notify_once(tmp_path, "age", "old", ["a"])
    assert told.titles == ["old", "failed", "failed"]


@pytest.fixture
def monitored(monkeypatch):
    """Version 7 is monitored, which was trained on walls."""
    found = MonitoredModel("7", photos(0, 5).assign(dataset="walls"), 0.5)
    monkeypatch.setattr(labelling, "monitored_model", lambda name: found)


def test_the_images_most_worth_labelling_of_all_that_the_model_scored_are_exported(tmp_path, params, monitored):
    seen = photos(1, 3)  # of twelve tiles
    for month, version in ((3, "7"), (4, "7"), (5, "6")):
        rows = seen.assign(
            time=pd.Timestamp(2030, month, 1, tz="UTC"), model_version=version, source="api", probability=0.5
        )
        PredictionLog(tmp_path / LOG_FOLDER).append(rows)
    line = images_to_label(tmp_path, params)
    table = tmp_path / "data" / "monitoring" / "to-label" / "list.csv"
    assert f"of {2 * len(seen)}, are listed in {table}; 0 of them are copied there" in line
    assert len(pd.read_csv(table)) == min(2 * len(seen), params.monitor.n_to_label)


def test_where_nothing_was_logged_the_message_says_so(tmp_path, params, monitored):
    assert re.search("could not be chosen.*has no rows of version 7.*cracks predict", images_to_label(tmp_path, params))
    assert not (tmp_path / "data").exists()


def test_a_model_whose_training_images_are_not_known_is_named_in_the_message(tmp_path, params, monkeypatch):
    def fail(name):
        raise CracksError("registered without its reference")

    monkeypatch.setattr(labelling, "monitored_model", fail)
    assert "registered without its reference" in images_to_label(tmp_path, params)


def test_a_registry_that_is_away_sends_no_message_without_images(tmp_path, params, monkeypatch):
    def fail(name):
        raise UnavailableError("away")

    monkeypatch.setattr(labelling, "monitored_model", fail)
    with pytest.raises(UnavailableError):
        images_to_label(tmp_path, params)


def version(number, days_old, now):
    at_ms = (now - timedelta(days=days_old)).timestamp() * 1000
    return SimpleNamespace(version=number, creation_timestamp=int(at_ms))


@pytest.mark.parametrize(
    ("days_old", "expected"),
    [
        ({"production": 181, "challenger": 1}, "1"),
        ({"production": 180, "challenger": 500}, None),
        ({"challenger": 181}, "2"),
        ({}, None),
    ],
)
def test_the_model_in_production_may_be_so_old_and_no_older(params, monkeypatch, days_old, expected):
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

    now = datetime(2030, 1, 1, tzinfo=UTC)
    numbers = {"production": "1", "challenger": "2"}

    def by_alias(name, alias):
        if alias not in days_old:
            raise MlflowException("no such alias", error_code=INVALID_PARAMETER_VALUE)
        return version(numbers[alias], days_old[alias], now)

    never_decided = {"get_experiment_by_name": lambda name: None}
    client = SimpleNamespace(get_model_version_by_alias=by_alias, **never_decided)
    monkeypatch.setattr(tracking, "connect", lambda: (client, "1"))
    assert overdue(params, now) == expected


def test_a_registry_that_fails_is_not_taken_for_one_whose_model_is_young(params, monkeypatch):
    from mlflow.exceptions import MlflowException

    def fail(name, alias):
        raise MlflowException("connection refused")

    monkeypatch.setattr(tracking, "connect", lambda: (SimpleNamespace(get_model_version_by_alias=fail), "1"))
    with pytest.raises(UnavailableError, match="connection refused"):
        overdue(params, datetime(2030, 1, 1, tzinfo=UTC))


def git(root, *arguments):
    # nothing of this machine's own settings: a name of the committer among them
    env = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(["git", *arguments], cwd=root, env=env, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project in git and DVC with an archive in the folder of batches, on a machine that has no name for git."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    git(tmp_path, "init", "--quiet")
    subprocess.run(["dvc", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("/data/incoming/*\n!/data/incoming/*.dvc\n/data/inbox/\n")
    (tmp_path / "data" / "incoming" / "site").mkdir(parents=True)
    (tmp_path / "data" / "incoming" / "site" / "0001-b.zip").write_bytes(b"an archive")
    git(tmp_path, "add", "--all")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message=first")
    write_record(tmp_path, [BATCH])
    return tmp_path


def committed(root):
    return git(root, "show", "--name-only", "--format=%s").split("\n\n")


def test_only_what_is_named_is_committed_whatever_a_person_has_staged(repository):
    (repository / "notes.txt").write_text("of a person")
    git(repository, "add", "notes.txt")
    commit(repository, [RECORD, Path("dvc.lock")], "Take it")
    assert committed(repository) == ["Take it", "data/batches.json\n"]
    assert git(repository, "status", "--porcelain") == "A  notes.txt\n"
    commit(repository, [RECORD], "Again")
    assert committed(repository)[0] == "Take it"  # nothing had changed


def test_what_git_refuses_is_a_warning(repository, caplog):
    (repository / ".git" / "index.lock").touch()
    commit(repository, [RECORD], "Take it")
    assert "git add: fatal: Unable to create" in caplog.text
    assert committed(repository)[0] == "first"


def test_a_machine_without_git_is_a_warning(repository, caplog, monkeypatch):
    monkeypatch.setenv("PATH", "")
    commit(repository, [RECORD], "Take it")
    assert "git is not installed, so data/batches.json is not committed." in caplog.text


def test_a_project_that_is_not_in_git_commits_nothing_to_a_repository_around_it(tmp_path):
    git(tmp_path, "init", "--quiet")
    project = tmp_path / "project"
    write_record(project, [BATCH])
    commit(project, [RECORD], "Take it")
    assert git(tmp_path, "status", "--porcelain", "--untracked-files=all").split() == ["??", f"project/{RECORD}"]


def test_without_a_remote_batches_are_recorded_in_git_and_dvc_keeps_nothing(repository, params):
    store_batches(repository, params)
    assert committed(repository) == ["Take new batches into site", "data/batches.json\n"]
    assert not (repository / "data" / "incoming" / "site.dvc").exists()
    push_results(repository)


def test_with_a_remote_the_folder_is_added_pushed_and_its_pointer_committed(repository, params, tmp_path_factory):
    remote = tmp_path_factory.mktemp("remote")
    subprocess.run(["dvc", "remote", "add", "--quiet", "--default", "store", remote], cwd=repository, check=True)
    store_batches(repository, params)
    assert committed(repository)[1] == "data/batches.json\ndata/incoming/site.dvc\n"
    assert b"an archive" in [path.read_bytes() for path in remote.rglob("*") if path.is_file()]


def test_a_remote_that_is_away_is_an_error_that_may_pass(repository, params):
    subprocess.run(
        ["dvc", "remote", "add", "--quiet", "--default", "store", "http://127.0.0.1:9/"], cwd=repository, check=True
    )
    # on one line, and without what DVC says besides
    with pytest.raises(
        UnavailableError, match=r"^`dvc push .*site\.dvc` failed: .*[^!] Nothing is lost: repair it, and"
    ):
        store_batches(repository, params)


def test_a_training_is_noted_in_the_record_and_in_git(repository):
    (repository / "dvc.lock").write_text("schema: '2.0'\n")
    record_training(repository, "4")
    assert [batch.trained_as for batch in read_record(repository)] == ["4"]
    assert committed(repository) == ["Train version 4 on new batches", "data/batches.json\ndvc.lock\n"]


def test_five_lines_say_what_happened_and_why(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    test = {"n": 400, "f1": 0.98765, "ece": 0.0123, "interval": {"f1": {"low": 0.97, "high": 0.999}}}
    metrics = {"demo": False, "candidate": "probe", "trained_on": ["metu", "site"], "test": test}
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "scores.json").write_text(json.dumps(metrics))
    assert summary_message(tmp_path, [BATCH], "7", "version 7 is refused: floors: f1 is too low") == [
        "New batches of site: 0001-b.zip (1,200 images)",
        "Model: version 7, probe, trained on metu+site",
        "On test: F1 0.9877 (0.9700 to 0.9990), ECE 0.0123, 400 images",
        "Gate: version 7 is refused: floors: f1 is too low",
        f"Report: {tmp_path}/reports/report.html; model registry: http://mlflow:5000",
    ]


@pytest.mark.parametrize(("n_groups", "why"), [(40, "a perfect score"), (4, "few groups")])
def test_a_score_without_an_interval_is_told_as_such(tmp_path, why, n_groups):
    labels = np.arange(80) % 2 == 0
    probabilities = np.where(labels, 0.9, 0.1)
    if why == "few groups":
        probabilities[:2] = 0.5
    test = scores_with_intervals(labels, probabilities, np.arange(80) % n_groups, Decision(0.5, 0.5, 0.5))
    metrics = {"demo": False, "candidate": "probe", "trained_on": ["site"], "test": test}
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "scores.json").write_text(json.dumps(metrics))
    lines = summary_message(tmp_path, [BATCH], "7", "version 7 is promoted")
    assert re.match(r"On test: F1 (1\.0000|0\.9\d+) \(no interval\), ECE 0\.\d+, 80 images$", lines[2])
