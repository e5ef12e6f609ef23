"""Stages run as DVC runs them; none outlives its flow, hangs, or is retried without need."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Project
from toy_project import QUICK_FLOW, Stages, copy_toy, diamond, toy_project, write_stages

from flows import stages
from pipeline.errors import CracksError, RefusedError, UnavailableError
from pipeline.files import write_text
from pipeline.params import Flow

# DVC asks its trie in a way that ends with a later version of that.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that makes a toy project and works in it."""

    def make(these: Stages) -> Project:
        project = toy_project(tmp_path / "project", these)
        monkeypatch.chdir(project.root)
        monkeypatch.delenv("DVC_ROOT", raising=False)
        return project

    return make


def runner(**settings: float) -> stages.StageRunner:
    return stages.StageRunner(Flow(**(QUICK_FLOW | settings)))


def wait_for(path: Path) -> str:
    """Return the content of a file that another process is about to write."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)
    return path.read_text().strip()


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.05)


def test_the_graph_is_read_from_dvc(at):
    at(diamond())
    graph = stages.read_graph()
    assert {name: set(stage.needs) for name, stage in graph.items()} == {
        "first": set(),
        "left": {"first"},
        "right": {"first"},
        "last": {"left", "right"},
    }
    assert all(stage.has_changed for stage in graph.values())


def test_only_a_stage_that_differs_from_the_lock_has_changed(at):
    project = at(diamond())
    project.repro()
    assert not any(stage.has_changed for stage in stages.read_graph().values())
    (project.root / "right").unlink()
    assert [name for name, stage in stages.read_graph().items() if stage.has_changed] == ["last", "right"]


def test_stages_that_dvc_cannot_read_are_a_mistake_of_a_person(at):
    project = at(diamond())
    (project.root / "dvc.yaml").write_text("stages: {a: {command: true}}")
    with pytest.raises(CracksError, match="DVC cannot read the stages"):
        stages.read_graph()


def test_a_stage_says_whether_it_had_to_run_and_what_it_prints(at):
    at({"one": {"cmd": "echo hello; echo done > out", "outs": ["out"]}})
    lines: list[str] = []
    assert runner().reproduce("one", lines.append)
    assert "hello" in lines
    assert not runner().reproduce("one", lines.append)


def test_a_stage_restored_from_the_run_cache_counts_as_changed_for_those_that_need_it(at):
    project = at({"one": {"cmd": "cat given > out", "deps": ["given"], "outs": ["out"]}})
    for given in ("a", "b", "a"):
        (project.root / "given").write_text(given)
        lines: list[str] = []
        assert runner().reproduce("one", lines.append)
    assert any("is cached" in line for line in lines)
    assert (project.root / "out").read_text() == "a"


def test_a_service_that_is_away_is_an_error_that_another_try_can_help(at):
    at({"one": {"cmd": "echo 'error: no answer' >&2; exit 4", "outs": ["out"]}})
    with pytest.raises(UnavailableError, match=r"Stage one failed\. no answer"):
        runner().reproduce("one", lambda line: None)


@pytest.mark.parametrize(("code", "kind"), [(1, CracksError), (2, CracksError), (3, RefusedError)])
def test_what_another_try_cannot_help_fails_with_the_stages_own_message(at, code, kind):
    at({"one": {"cmd": f"echo 'error: it is red' >&2; exit {code}", "outs": ["out"]}})
    with pytest.raises(CracksError, match="it is red") as caught:
        runner().reproduce("one", lambda line: None)
    assert (type(caught.value), caught.value.exit_code) == (kind, code)


def test_a_stage_whose_files_another_dvc_holds_can_be_tried_again(at):
    project = at({"one": {"cmd": "echo done > out", "outs": ["out"]}})
    locks = project.root / ".dvc" / "tmp" / "rwlock"
    holder = {"pid": os.getpid(), "cmd": "dvc repro other"}
    locks.write_text(json.dumps({"write": {str(project.root / "out"): holder}, "read": {}}))
    with pytest.raises(UnavailableError, match="blocked by another DVC process"):
        runner().reproduce("one", lambda line: None)
    locks.unlink()
    assert runner().reproduce("one", lambda line: None)


def test_a_stage_that_hangs_ends_at_its_timeout_with_all_its_processes(at):
    project = at({"one": {"cmd": "sleep 611 & echo $! > pid; sleep 611; echo done > out", "outs": ["out"]}})
    with pytest.raises(CracksError, match=r"still running after 0\.1 minutes"):
        runner(stage_timeout_minutes=0.1).reproduce("one", lambda line: None)
    wait_until_gone(int((project.root / "pid").read_text()))


def test_when_the_flow_ends_its_stages_end_and_no_other_starts(at):
    project = at({"one": {"cmd": "echo $$ > pid; sleep 611; echo done > out", "outs": ["out"]}})
    stage_runner = runner()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stage_runner.reproduce, "one", lambda line: None)
        pid = int(wait_for(project.root / "pid"))
        stage_runner.end()
        assert isinstance(running.exception(), CracksError)
    wait_until_gone(pid)
    with pytest.raises(CracksError, match="was not started"):
        stage_runner.reproduce("one", lambda line: None)


@pytest.fixture
def orphan(at) -> Iterator[psutil.Process]:
    """Yield the process of a stage whose flow was killed."""
    project = at({"one": {"cmd": "echo $$ > pid; sleep 611; echo done > out", "outs": ["out"]}})
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);from test_stages import runner; runner().reproduce('one', print)"
    )
    tests = str(Path(__file__).parent)
    flow = subprocess.Popen([sys.executable, "-c", code, tests], stdout=subprocess.DEVNULL)
    process = psutil.Process(int(wait_for(project.root / "pid")))
    flow.kill()
    flow.wait()
    yield process
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def test_a_stage_left_behind_by_a_killed_flow_is_ended(orphan):
    assert is_running(orphan.pid)
    lines: list[str] = []
    stages.end_orphans(lines.append)
    wait_until_gone(orphan.pid)
    assert any(f"Ended process {orphan.pid}" in line for line in lines)
    stages.clear_locks(lines.append)
    assert not (Path(".dvc") / "tmp" / "rwlock").exists()


def test_a_stage_of_another_project_and_one_whose_flow_lives_are_left_alone(orphan, tmp_path, monkeypatch):
    (tmp_path / "other" / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    stages.end_orphans(lambda line: None)
    assert is_running(orphan.pid)


@pytest.mark.parametrize(
    "left",
    ['{"write": {"x": {"pid": 1', '{"write": {"out": {"pid": 1, "cmd": "dvc repro one"}}, "read": {}}'],
    ids=["cut off", "of a process whose id another has now"],
)
def test_locks_that_a_killed_dvc_left_do_not_stop_the_next(at, left):
    project = at({"one": {"cmd": "echo done > out", "outs": ["out"]}})
    (project.root / ".dvc" / "tmp" / "rwlock").write_text(left)
    stages.clear_locks(lambda line: None)
    assert runner().reproduce("one", lambda line: None)


def test_outside_a_project_nothing_is_repaired_and_a_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    stages.clear_locks(lambda line: None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CracksError, match="not inside of a DVC repository"):
        stages.read_graph()


def test_a_killed_stage_is_said_to_be_killed(at):
    at({"one": {"cmd": "kill -9 $$", "outs": ["out"]}})
    with pytest.raises(CracksError, match=r"Stage one failed. It was killed by signal 9\. The machine may have"):
        runner().reproduce("one", lambda line: None)


def test_the_locks_of_a_dvc_at_work_are_left_to_it(at):
    project = at({"one": {"cmd": "echo $$ > pid; sleep 611; echo done > out", "outs": ["out"]}})
    stage_runner = runner()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stage_runner.reproduce, "one", lambda line: None)
        wait_for(project.root / "pid")
        stages.clear_locks(lambda line: None)
        assert "dvc" in (project.root / ".dvc" / "tmp" / "rwlock").read_text()
        stage_runner.end()


@pytest.mark.parametrize("cut_after", [b"    cm", b"hash: md"])
@pytest.mark.parametrize("is_link", [False, True], ids=["plain", "a link to a volume, as in the image"])
def test_a_lock_file_cut_off_by_a_kill_is_made_again_without_running_stages(at, is_link, cut_after):
    project = at(diamond())
    lock = project.root / "dvc.lock"
    if is_link:
        write_text(project.root / "state" / "dvc.lock", stages.EMPTY_DVC_LOCK)
        lock.symlink_to("state/dvc.lock")
    project.repro()
    whole = lock.read_bytes()
    lock.write_bytes(whole[: whole.index(cut_after) + len(cut_after)])
    lines: list[str] = []
    stages.clear_locks(lines.append)
    assert lines == ["dvc.lock was truncated when DVC was killed; it is restored from the run cache."]
    printed = project.repro()
    assert "Running stage" not in printed
    assert yaml.safe_load(lock.read_bytes()) == yaml.safe_load(whole)
    assert lock.is_symlink() == is_link


@pytest.mark.slow
@pytest.mark.soak
def test_fifty_rounds_of_two_stages_at_once_end_as_one_after_the_other_would(at, tmp_path):
    project = at({})

    def numbered(name: str, round_number: int) -> dict[str, object]:
        return {"cmd": f"echo {name} {round_number} > {name}", "outs": [name]}

    with ThreadPoolExecutor(2) as pool:
        for round_number in range(50):
            write_stages(project.root, {name: numbered(name, round_number) for name in ("left", "right")})
            stage_runner = runner()
            both = [pool.submit(stage_runner.reproduce, name, lambda line: None) for name in ("left", "right")]
            assert [future.result() for future in both] == [True, True]
            assert (project.root / "left").read_text() == f"left {round_number}\n"
            locked = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
            assert [locked[name]["cmd"] for name in ("left", "right")] == [
                f"echo {name} {round_number} > {name}" for name in ("left", "right")
            ]
    serial = copy_toy(project, tmp_path / "serial")
    serial.repro()
    assert yaml.safe_load((serial.root / "dvc.lock").read_text()) == yaml.safe_load(
        (project.root / "dvc.lock").read_text()
    )
