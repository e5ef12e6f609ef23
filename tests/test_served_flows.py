"""What `python -m flows` serves."""

import contextlib
import errno
import importlib
import pkgutil
import re
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from conftest import QUICK_POLL, prefect_server, unused_port, wait_until
from prefect import Flow
from toy_project import diamond, toy_project
from webhook import webhook

import flows
import flows.__main__ as served
from flows import flow_runs
from flows.deployments import deployments, flows_and_schedules
from pipeline.params import load_params

# What is served, with less patience, so that a test needs less too.
HASTY = """
from datetime import timedelta
from prefect.schedules import Schedule
from pipeline.monitoring import heartbeat
import flows.__main__ as served
from flows import deployments, training
served.INTERVAL_S, served.POLL_S = 1, 0.5
heartbeat.INTERVAL_S, heartbeat.LATE_S = 1, 15
deployments.flows_and_schedules = lambda params: [(training.training, Schedule(interval=timedelta(seconds=5)))]
served.main()
"""
HASTY_PREFECT = {"PREFECT_CLIENT_MAX_RETRIES": "0", **QUICK_POLL}
PARAMS = load_params(Path(__file__).parents[1] / "params.yaml")


def every_flow():
    """All flows of the package, by name."""
    modules = [importlib.import_module(f"flows.{module.name}") for module in pkgutil.iter_modules(flows.__path__)]
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Flow)}


def test_every_flow_is_served_and_those_that_nobody_starts_have_a_schedule():
    schedules = {flow.name: schedule for flow, schedule in flows_and_schedules(PARAMS)}
    assert set(schedules) == set(every_flow())
    crons = {name: (schedule.cron, schedule.timezone) for name, schedule in schedules.items() if schedule is not None}
    assert crons == {"retraining": (PARAMS.retrain.cron, "UTC"), "monitoring": (PARAMS.monitor.cron, "UTC")}
    assert {deployment.name for deployment in deployments(PARAMS)} == set(schedules)


def test_every_flow_records_the_process_that_runs_it():
    for name, flow in every_flow().items():
        assert flow_runs.record_process in flow.on_running_hooks, name


@pytest.mark.parametrize("name", every_flow())
def test_a_full_disk_fails_a_flow_with_what_to_do(name, monkeypatch):
    flow, arguments = every_flow()[name], ["no reason"] if name == "rollback" else []

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setitem(flow.fn.__globals__, "load_params", full)
    monkeypatch.setattr(flow_runs, "clean_up", lambda log_line: None)
    monkeypatch.setitem(flow.fn.__globals__, "get_run_logger", lambda: served.log)
    state = flow.fn(*arguments)
    assert state.is_failed()
    assert re.fullmatch(r"No space left on device: \S+params.yaml. Make room on that disk .*", state.message)


def status_error(status):
    request = httpx.Request("GET", "http://127.0.0.1")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


def test_an_outage_of_the_server_begins_anew_and_what_trying_again_cannot_mend_ends_the_schedules(monkeypatch):
    outages = [RuntimeError(served.GAVE_UP), httpx.ConnectError("refused"), status_error(503)]
    defects = [RuntimeError("of another kind"), KeyError("a defect"), status_error(401)]
    raised = []

    class Failing:
        def __init__(self, **settings):
            pass

        async def start(self):
            raised.append(errors.pop(0))
            raise ExceptionGroup("unhandled errors in a TaskGroup", [raised[-1]])

    monkeypatch.setattr(served, "FlowServer", Failing)
    monkeypatch.setattr(served, "deployments", lambda params: [])
    monkeypatch.setattr(served, "answers", lambda address: True)
    monkeypatch.setattr(served, "POLL_S", 0)
    for defect in defects:
        errors = [*outages, defect]
        with pytest.raises(ExceptionGroup) as ended:
            served.serve(PARAMS, "http://127.0.0.1/api")
        assert ended.group_contains(type(defect), match=str(defect.args[0]))
        assert errors == []
    assert len(raised) == len(defects) * (len(outages) + 1)


def test_a_mistake_in_params_after_the_start_does_not_stop_the_heartbeat(monkeypatch, tmp_path):
    (tmp_path / "params.yaml").write_text("flow: {", encoding="utf-8")
    stop, now = threading.Event(), datetime.now(UTC)
    polled = [SimpleNamespace(name="training", last_polled=now + timedelta(minutes=1))]
    monkeypatch.setattr(served, "project_root", lambda: tmp_path)
    monkeypatch.setattr(served, "clean_up", lambda: True)
    monkeypatch.setattr(served, "get_client", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(flow_runs, "our_deployments", lambda _: polled)
    monkeypatch.setattr(served, "renew_heartbeat", stop.set)
    threading.Thread(target=served.keep_heartbeat, args=(stop, {"training"}), daemon=True).start()
    assert stop.wait(10)


@pytest.mark.soak
def test_while_the_prefect_server_is_away_someone_is_told_and_when_it_is_back_the_schedules_begin_anew(tmp_path):
    project = toy_project(tmp_path / "project", diamond())
    folder, port = tmp_path / "prefect", unused_port()
    folder.mkdir()

    def n_completed():
        time.sleep(0.5)  # asked without a pause, the server's SQLite has no time for anyone else
        wanted = {"flow_runs": {"state": {"name": {"any_": ["Completed"]}}}}
        return httpx.post(f"{api}/flow_runs/count", json=wanted, timeout=30).raise_for_status().json()

    with webhook() as (address, messages):
        with prefect_server(folder, port) as api:
            env = {"PREFECT_API_URL": api, "CRACKS_NOTIFY_URL": address}
            process = project.start(sys.executable, "-c", HASTY, **env, **HASTY_PREFECT)
            wait_until(n_completed)
        try:
            wait_until(lambda: messages and "has given up on its server" in project.log.read_text())
            with prefect_server(folder, port) as api:
                before = n_completed()
                wait_until(lambda: n_completed() > before)
                wait_until(lambda: len(messages) > 1)
                process.terminate()
                assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    titles = ["Concrete cracks: the schedules have stopped", "Concrete cracks: the schedules are running again"]
    assert [message["title"] for message in messages] == titles
    assert not (project.root / ".prefect" / "heartbeat.json").exists()
