"""Promotion against a real tracking server, by real processes: killed in the middle, and two at once."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import unused_port
from registry import make_registry, write_graph

from pipeline.params import load_params
from pipeline.registry import promote
from pipeline.registry.history import opened
from pipeline.registry.promotion_records import Record

pytestmark = pytest.mark.slow

GOOD, BETTER = 0.5, 0.6225
ROOT = Path(__file__).parents[1]
# The command line, which says what it reaches and waits there for a line.
PAUSED = """
import sys
from pipeline import cli
from pipeline.registry.history import History

def paused(name):
    method = getattr(History, name)
    def call(*args):
        print("at", name, flush=True)
        sys.stdin.readline()
        return method(*args)
    return call

pause, *sys.argv[1:] = sys.argv[1:]
setattr(History, pause, paused(pause))
cli.main()
"""
# Moves the alias from wherever it is to another version, five times, or gives way.
MANY = """
import random, sys
from pipeline.errors import UnavailableError
from pipeline.registry.history import opened
from pipeline.registry.promotion_records import Record

for _ in range(5):
    with opened(sys.argv[1]) as history:
        now = history.production()
        to = random.choice(sorted({"1", "2", "3"} - {now}))
        try:
            history.move(Record("promotion", "promoted", to, now, "Ada", ""), {})
        except UnavailableError as error:
            assert "Nothing has moved" in str(error), error
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an MLflow server on SQLite."""
    root = tmp_path_factory.mktemp("server")
    port = unused_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}", "--artifacts-destination", str(root / "artifacts"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, root / "log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(address, process, log, deadline_s=120):
    started_s = time.monotonic()
    while time.monotonic() - started_s < deadline_s:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health") as answer:  # noqa: S310
                return answer.read()
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(log.read_text())


@pytest.fixture
def models(server, tmp_path, tmp_path_factory, request, monkeypatch):
    """A project whose registry is on the server: version 1 is in production, 2 and 3 would be as good."""
    graph = tmp_path_factory.getbasetemp() / "graph-of-the-server"
    if not graph.exists():
        graph.mkdir()
        write_graph(graph)
    monkeypatch.setenv("DVC_ROOT", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    made = make_registry(tmp_path / "project", graph, None, name=f"cracks-{abs(hash(request.node.name))}")
    for threshold in (GOOD, GOOD, BETTER):
        made.add(threshold)
    with opened(made.name) as history:
        history.move(Record("promotion", "promoted", "1", None, "Ada", "", best="1"), {})
    return made


def start(models, *arguments, pause):
    """Start the command line, which says so and waits for a line where the method `pause` of History is called."""
    return subprocess.Popen(
        [sys.executable, "-c", PAUSED, pause, *arguments],
        cwd=models.root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_at(process, pause):
    line = process.stdout.readline()
    assert line == f"at {pause}\n", line + process.stderr.read()


def kill_at(process, pause):
    """Kill -9 the process where it waits."""
    wait_at(process, pause)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def records(models):
    with opened(models.name) as history:
        return [(record.outcome, record.version, record.previous) for record in history.records()]


def test_killed_after_the_alias_has_moved_the_promotion_reads_as_made_and_the_next_command_completes_it(models):
    kill_at(start(models, "promote", "2", pause="_close"), "_close")
    assert models.production() == "2"
    assert models.state("2") is None  # nothing after the move was written
    assert records(models) == [("promoted", "2", "1"), ("promoted", "1", None)]
    promote.rollback(load_params(models.root / "params.yaml"), None, "try", "Ada")
    assert models.production() == "1"
    assert records(models) == [("rolled back", "1", "2"), ("promoted", "2", "1"), ("promoted", "1", None)]
    with opened(models.name) as history:
        assert all(models.client.get_run(record.run_id).info.status == "FINISHED" for record in history.records())


def test_killed_before_the_alias_moves_the_promotion_reads_as_withdrawn_and_a_rerun_ends_right(models):
    kill_at(start(models, "promote", "2", pause="_wait_for_turn"), "_wait_for_turn")
    assert models.production() == "1"
    assert records(models) == [("withdrawn", "2", "1"), ("promoted", "1", None)]
    decided = promote.run(load_params(models.root / "params.yaml"), "2", dry_run=False, allow_dirty=False, by="Ada")
    assert decided.outcome == "promoted"
    assert models.production() == "2"
    assert records(models) == [("promoted", "2", "1"), ("withdrawn", "2", "1"), ("promoted", "1", None)]


def test_of_two_promotions_at_once_one_moves_the_alias_and_the_other_gives_way(models):
    both = [start(models, "promote", version, pause="_wait_for_turn") for version in ("2", "3")]
    for process in both:
        wait_at(process, "_wait_for_turn")  # both records are open
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 4], errors
    assert any("is under way since" in error and "Nothing has moved" in error for error in errors)
    moved = [record for record in records(models) if record[0] == "promoted"]
    assert len(moved) == 2
    assert models.production() == moved[0][1]
    assert [record[0] for record in records(models)].count("withdrawn") == 1


@pytest.mark.soak
def test_however_many_move_the_alias_at_once_history_is_one_chain_that_ends_where_the_alias_stands(models):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, models.name],
            cwd=models.root, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    with opened(models.name) as history:
        moves, everything = history.moves(), history.records()
    assert {record.outcome for record in everything} <= {"promoted", "withdrawn"}
    assert len(moves) > 3
    assert [move.previous for move in moves[1:]] == [move.version for move in moves[:-1]]
    assert models.production() == moves[-1].version
