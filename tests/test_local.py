"""`make up`, `status` and `down`, with the real servers."""

import json
import os
import re
import signal
import socket
import sys
import time

import httpx
import psutil
import pytest
from conftest import PROJECT_NAME, unused_port, wait_until
from tiny_model import write_tiny_model
from toy_project import diamond, toy_project
from webhook import webhook

from pipeline.monitoring.heartbeat import INTERVAL_S, LATE_S

pytestmark = pytest.mark.slow(12)

LOCAL = (sys.executable, "-m", "flows.local")
RUN_NOW = ("prefect", "deployment", "run", "training/training")
HANGS = "echo $$ > pid; sleep 611; cat a > left"


@pytest.fixture
def project(tmp_path):
    project = toy_project(tmp_path / PROJECT_NAME, diamond(left=HANGS))
    yield project
    project.run(*LOCAL, "down")


def test_what_was_started_is_shown_and_ended_with_the_stage_that_runs(project):
    prefect_port, mlflow_port, api_port = (str(unused_port()) for _ in range(3))
    ports = ("--prefect-port", prefect_port, "--mlflow-port", mlflow_port, "--api-port", api_port)
    write_tiny_model(project.root / "starter")
    project.edit_params(lambda params: params["flow"].update(timezone="Asia/Tokyo"))
    ports += ("--starter", "starter")
    started = project.run(*LOCAL, "up", *ports)
    assert started.returncode == 0, started.stderr
    assert re.search(r"retraining: 0 3 \* \* \* in Asia/Tokyo, next \d{4}-\d\d-\d\d 03:00 JST\n", started.stderr)
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{api_port}/readyz").is_success)
    assert "starter" in httpx.get(f"http://127.0.0.1:{api_port}/v1/model").json()["description"]
    record = json.loads((project.root / ".prefect" / "local.json").read_text())
    assert set(record) == {"prefect", "mlflow", "flows", "api"}
    assert httpx.get(f"http://127.0.0.1:{mlflow_port}/health").text == "OK"

    again = project.run(*LOCAL, "up", *ports)
    assert again.returncode == 0, again.stderr
    assert json.loads((project.root / ".prefect" / "local.json").read_text()) == record

    asked = project.run(*RUN_NOW, PREFECT_API_URL=f"http://127.0.0.1:{prefect_port}/api")
    assert asked.returncode == 0, asked.stderr
    pid, deadline_s = project.root / "pid", time.monotonic() + 120
    while not (pid.exists() and pid.read_text().strip()):
        assert time.monotonic() < deadline_s, (project.root / ".prefect" / "logs" / "flows.log").read_text()
        time.sleep(0.2)
    shown = project.run(*LOCAL, "status").stderr
    assert "prefect  runs" in shown
    assert "Running" in shown
    assert "heartbeat" in shown
    assert "retraining: 0 3 * * * in Asia/Tokyo" in shown

    ended = project.run(*LOCAL, "down")
    assert ended.returncode == 0, ended.stderr
    assert not any(psutil.pid_exists(holder["pid"]) for holder in record.values())
    assert not psutil.pid_exists(int(pid.read_text()))
    assert "no heartbeat" in project.run(*LOCAL, "status").stderr


@pytest.mark.soak
def test_the_api_sends_an_alert_when_the_schedules_are_killed_and_a_message_when_they_return(project):
    prefect_port, mlflow_port, api_port = (str(unused_port()) for _ in range(3))
    ports = ("--prefect-port", prefect_port, "--mlflow-port", mlflow_port, "--api-port", api_port)
    with webhook() as (address, messages):
        started = project.run(*LOCAL, "up", *ports, CRACKS_NOTIFY_URL=address)
        assert started.returncode == 0, started.stderr
        record = json.loads((project.root / ".prefect" / "local.json").read_text())
        os.kill(record["flows"]["pid"], signal.SIGKILL)
        wait_until(lambda: messages, LATE_S + 2 * INTERVAL_S)
        assert messages[0]["title"] == "Concrete cracks: the schedules have stopped"
        assert "flows    is dead" in project.run(*LOCAL, "status").stderr
        metrics = httpx.get(f"http://127.0.0.1:{api_port}/metrics").text
        assert float(metrics.split("\ncracks_schedules_heartbeat_age_seconds ")[1].split()[0]) >= LATE_S
        assert project.run(*LOCAL, "up", *ports, CRACKS_NOTIFY_URL=address).returncode == 0
        wait_until(lambda: len(messages) > 1, 2 * INTERVAL_S)
        assert messages[1]["title"] == "Concrete cracks: the schedules are running again"
        os.kill(json.loads((project.root / ".prefect" / "local.json").read_text())["flows"]["pid"], signal.SIGKILL)
        assert project.run(*LOCAL, "down").returncode == 0
    assert not (project.root / ".prefect" / "heartbeat.json").exists()  # of dead schedules that were to end
    assert len(messages) == 2


def test_a_mistake_in_params_is_said_before_anything_is_started(project):
    project.edit_params(lambda params: params["retrain"].update(cron="61 3 * * *"))
    started = project.run(*LOCAL, "up")
    assert started.returncode == 2
    assert "retrain.cron: " in started.stderr
    assert not (project.root / ".prefect" / "local.json").exists()


def test_schedules_that_cannot_be_served_are_not_said_to_be_and_the_message_is_shown(project, prefect_api):
    elsewhere = {
        "PREFECT_API_URL": prefect_api,
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "PREFECT_CLIENT_MAX_RETRIES": "many",
    }
    started = project.run(*LOCAL, "up", **elsewhere)
    assert started.returncode == 4
    assert "flows ended" in started.stderr
    assert "many" in started.stderr.partition("flows ended")[2]
    assert "serves the schedules" not in started.stderr


def test_a_port_that_is_taken_is_said_with_how_to_choose_another(project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = project.run(*LOCAL, "up", "--prefect-port", str(port))
    assert started.returncode == 2
    assert f"Port {port} for prefect is taken" in started.stderr
    assert f"make up PREFECT_PORT={port + 1}" in started.stderr


def test_a_process_that_has_the_id_of_a_dead_service_is_not_ended(project):
    record = project.root / ".prefect" / "local.json"
    record.parent.mkdir()
    holder = {"pid": os.getpid(), "started_s": 0.0, "host": socket.gethostname(), "address": "http://127.0.0.1:1"}
    record.write_text(json.dumps({"prefect": holder}))
    assert "is dead" in project.run(*LOCAL, "status").stderr
    ended = project.run(*LOCAL, "down")
    assert ended.returncode == 0
    assert "ended" not in ended.stderr
    assert json.loads(record.read_text()) == {}
