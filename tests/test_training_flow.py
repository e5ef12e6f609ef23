"""The training flow against a real Prefect server, on stages that are lines of shell."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from conftest import QUICK_POLL, Project
from toy_project import diamond, toy_project

pytestmark = pytest.mark.slow(12)

FLOW = (sys.executable, "-m", "flows.training")
# Goes on until the test puts a file there; then it is done at once, in a later run too.
WAITS = "echo $$ > pid; while [ ! -e go ]; do sleep 0.1; done; cat a > left"
FAILS_TWICE = "echo x >> tries; [ $(wc -l < tries) -gt 2 ] && cat a > left || exit 4"
SERVE_EVERY_4_S = """
from datetime import timedelta
from prefect.schedules import Schedule
import flows.__main__ as served
from flows import deployments, training
deployments.flows_and_schedules = lambda params: [(training.training, Schedule(interval=timedelta(seconds=4)))]
served.main()
"""


class Server:
    """What a test asks the server."""

    def __init__(self, api: str, client: Any) -> None:
        self.api = api
        self.client = client

    def ask(self, what: str, **condition: object) -> list[dict[str, Any]]:
        return list(self.client.request("POST", f"/{what}/filter", json={"limit": 100, **condition}).json())

    def runs(self, *states: str) -> list[dict[str, Any]]:
        """Return the runs in states of these names, by default all but those to come; the last started first."""
        which = {"any_": states} if states else {"not_any_": ["Scheduled", "Late"]}
        return self.ask("flow_runs", sort="START_TIME_DESC", flow_runs={"state": {"name": which}})

    def tasks(self, run: dict[str, Any]) -> dict[str, str]:
        """Return the state's name of each task of a run."""
        found = self.ask("task_runs", flow_runs={"id": {"any_": [run["id"]]}})
        return {task["name"]: task["state_name"] for task in found}


@pytest.fixture
def server(prefect_api: str) -> Iterator[Server]:
    """Yield the server without the deployments and the runs of the tests before."""
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(prefect_api) as client:  # asks again where the server's SQLite was locked (503)
        server = Server(prefect_api, client)
        for deployment in server.ask("deployments"):
            client.request("DELETE", f"/deployments/{deployment['id']}")
        for run in server.ask("flow_runs"):
            client.request("DELETE", f"/flow_runs/{run['id']}")
        yield server


def wait_until(what: str, is_so: Callable[[], object], seconds: float = 120) -> None:
    deadline_s = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline_s, f"not so after {seconds} s: {what}"
        time.sleep(0.2)


def stage_pid(project: Project) -> int:
    """Return the process of the stage that waits, once it does."""
    pid = project.root / "pid"
    wait_until("the stage has started", lambda: pid.exists() and pid.read_text().strip())
    return int(pid.read_text())


def test_each_stage_is_a_task_tried_again_while_a_service_is_away_and_the_results_are_artifacts(server, tmp_path):
    project = toy_project(tmp_path / "project", diamond(left=FAILS_TWICE))
    first = project.run(*FLOW, PREFECT_API_URL=server.api)
    assert first.returncode == 0, first.stderr
    assert (project.root / "tries").read_text() == "x\n" * 3
    assert re.findall(r"It is tried again in (\S+) s", first.stderr) == ["0.01", "0.02"]
    [run] = server.runs()
    assert run["state"]["message"] == "4 of 4 stages ran: first, last, left, right"
    assert run["tags"] == ["cracks"]
    assert (run["state_name"], set(server.tasks(run).values())) == ("Completed", {"Completed"})
    assert set(server.tasks(run)) == {"first", "left", "right", "last"}
    artifacts = {
        artifact["key"]: artifact["data"]
        for artifact in server.ask("artifacts")
        if artifact["flow_run_id"] == run["id"]
    }
    assert "contract-demo" in artifacts
    assert "both labels are there" in artifacts["contract-demo"]
    assert "finetune-mobilenet" in artifacts["candidates"]
    assert "cracks version 1" in artifacts["result"]

    again = project.run(*FLOW, PREFECT_API_URL=server.api)
    assert again.returncode == 0, again.stderr
    assert set(server.tasks(server.runs()[0]).values()) == {"Cached"}
    assert server.runs()[0]["state"]["message"] == "every stage was up to date"


def test_a_failed_stage_stops_what_needs_it_and_nothing_else(server, tmp_path):
    stages = diamond(left="echo x >> red; echo 'error: the contract is broken' >&2; exit 3")
    stages["away"] = {"cmd": "echo x >> tries; echo 'error: no answer' >&2; exit 4", "outs": ["away"]}
    project = toy_project(tmp_path / "project", stages, max_retries=1)
    finished = project.run(*FLOW, PREFECT_API_URL=server.api)
    assert finished.returncode == 3
    assert "Traceback" not in finished.stderr
    [run] = server.runs()
    tasks = server.tasks(run)
    [hindered] = [tasks.pop(name) for name in list(tasks) if name.startswith("last-")]  # unnamed, for it never started
    assert hindered == "NotReady"
    assert tasks == {"first": "Completed", "left": "Refused", "right": "Completed", "away": "Unavailable"}
    assert set(run["state"]["message"].splitlines()) == {
        "Stage left failed. the contract is broken",
        "Stage away failed. no answer",
        "Not started: last.",
    }
    assert (project.root / "tries").read_text() == "x\n" * 2
    assert "NoneType: None" not in finished.stderr
    assert (project.root / "red").read_text() == "x\n"


def test_a_stage_starts_when_all_that_it_needs_is_done_and_no_more_than_two_run_at_once(server, tmp_path):
    meet = {name: f"while ! grep -q '+ {other}' events; do sleep 0.1; done; sleep 2;" for name, other in ("ab", "ba")}
    needs = {"a": "", "b": "", "c": "", "d": "a", "e": "a b", "f": "c d", "g": "e f", "red": "a", "behind": "b red"}
    stages = {
        name: {
            "cmd": f"echo + {name} >> events; {meet.get(name, '')} echo - {name} >> events; echo x > {name}; "
            f"test {name} != red",
            "deps": needed.split() or ["params.yaml"],
            "outs": [name],
        }
        for name, needed in needs.items()
    }
    project = toy_project(tmp_path / "project", stages, max_parallel_stages=2)
    assert project.run(*FLOW, PREFECT_API_URL=server.api).returncode == 1
    running, done, most = set(), set(), 0
    for sign, name in map(str.split, (project.root / "events").read_text().splitlines()):
        if sign == "-":
            running.remove(name)
            done.add(name)
        else:
            assert set(stages[name]["deps"]) - {"params.yaml"} <= done, name
            running.add(name)
            most = max(most, len(running))
    assert (most, done) == (2, set(needs) - {"behind"})


def test_a_mistake_in_params_fails_the_run_with_its_message(server, tmp_path):
    project = toy_project(tmp_path / "project", diamond())
    project.edit_params(lambda params: params["flow"].update(max_paralel_stages=3))
    finished = project.run(*FLOW, PREFECT_API_URL=server.api)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "did you mean max_parallel_stages?" in server.runs()[0]["state"]["message"]


def test_sigterm_ends_the_flow_its_stages_and_the_pause_before_another_try(server, tmp_path):
    project = toy_project(tmp_path / "project", diamond(left=WAITS, right="exit 4"), retry_pause_s=600)
    flow = project.start(*FLOW, PREFECT_API_URL=server.api)
    pid = stage_pid(project)
    wait_until("the pause", lambda: "It is tried again in 600 s" in project.log.read_text())
    flow.send_signal(signal.SIGTERM)
    assert flow.wait(60) != 0
    wait_until("the stage is gone", lambda: not psutil.pid_exists(pid), 10)
    assert server.runs()[0]["state_name"] == "Crashed"


def test_after_kill_9_the_next_run_sets_the_orphan_to_crashed_and_finishes_the_work(server, tmp_path):
    project = toy_project(tmp_path / "project", diamond(left=WAITS))
    flow = project.start(*FLOW, PREFECT_API_URL=server.api)
    pid = stage_pid(project)
    flow.kill()
    flow.wait()
    [killed] = server.runs()
    assert killed["state_name"] == "Running"
    assert psutil.pid_exists(pid)
    (project.root / "pid").unlink()

    # With another home: only the server knows of the killed run.
    again = project.start(*FLOW, PREFECT_API_URL=server.api, PREFECT_HOME=str(tmp_path / "home"))
    assert stage_pid(project) != pid
    assert not psutil.pid_exists(pid)
    (project.root / "go").touch()
    assert again.wait(120) == 0, project.log.read_text()
    states = {run["id"]: run["state_name"] for run in server.runs()}
    assert states.pop(killed["id"]) == "Crashed", project.log.read_text()
    assert list(states.values()) == ["Completed"]
    assert (project.root / "last").read_text() == "a\na\n"
    assert "Running stage" not in project.repro()


def test_a_served_schedule_fires_and_after_a_pause_what_was_missed_is_one_run(server, tmp_path):
    project = toy_project(tmp_path / "project", diamond())
    serve = (sys.executable, "-c", SERVE_EVERY_4_S)

    flows = project.start(*serve, PREFECT_API_URL=server.api, **QUICK_POLL)
    try:
        wait_until("a run of the schedule has completed", lambda: server.runs("Completed"))
    finally:
        flows.kill()
        flows.wait()
    n_done = len(server.runs("Completed"))
    assert server.runs("Completed")[0]["auto_scheduled"]
    assert (project.root / ".prefect" / "heartbeat.json").exists()

    wait_until("runs are late", lambda: len(server.runs("Late")) > 4)
    flows = project.start(*serve, PREFECT_API_URL=server.api, **QUICK_POLL)
    try:
        wait_until("the pile is gone", lambda: not server.runs("Late"))
        wait_until("a run has stood for it", lambda: len(server.runs("Completed")) > n_done)
        assert len(server.runs("Cancelled")) > len(server.runs("Completed"))
    finally:
        flows.terminate()
        assert flows.wait(60) == 0
    assert not (project.root / ".prefect" / "heartbeat.json").exists()  # a person has ended it: nobody is alarmed
