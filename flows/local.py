"""Run Prefect, MLflow, the schedules and the API on this machine: `python -m flows.local up`, `down` and `status`.

A server that the environment names (PREFECT_API_URL, MLFLOW_TRACKING_URI) is used instead of starting one. Each service
has a log under .prefect/logs/. `down` ends the processes that `up` recorded, and no others (docs/decisions/0015).
"""

import argparse
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from flows.services import (
    PREFECT,
    RECORD,
    Started,
    answers,
    end_tree,
    last_runs,
    next_runs,
    reaching_prefect,
    services_started,
)
from pipeline.errors import CracksError, UnavailableError
from pipeline.files import write_json
from pipeline.monitoring.heartbeat import LATE_S, end_heartbeat, heartbeat_age_s
from pipeline.params import load_params
from pipeline.process_identity import identity_of, is_alive
from pipeline.project import project_root
from pipeline.registry.tracking import local_artifacts, tracking_uri
from pipeline.stage import run_main

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_S = 180  # a new database of Prefect or MLflow on a busy machine
END_S = 60  # for a flow to end its stages
POLL_S = 0.5
LOG_LINES = 15
PREFECT_VARIABLE, MLFLOW_VARIABLE = "PREFECT_API_URL", "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Service:
    """A process that `up` starts."""

    name: str
    command: list[str]
    address: str | None  # URL for the user, None if it has none
    is_healthy: Callable[[float], bool]  # takes the start time of its process, in seconds since the epoch
    variables: dict[str, str] = field(default_factory=dict)


def services(prefect_port: int, mlflow_port: int, api_port: int, starter: Path | None) -> list[Service]:
    """Return the services to start, in order; `starter` is the model that the API serves until it has another."""
    found: list[Service] = []
    prefect_api, mlflow_address = os.environ.get(PREFECT_VARIABLE), os.environ.get(MLFLOW_VARIABLE)
    if not prefect_api:
        prefect_api = f"http://{HOST}:{prefect_port}/api"
        command = ["prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)]
        # its page requests its data from this address; the default is port 4200
        variables = {"PREFECT_SERVER_UI_API_URL": prefect_api, "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
        found.append(_server(PREFECT, prefect_port, "/api/health", command, variables))
    if not mlflow_address:
        # Artifacts are written directly to disk, so that they can be read while the server is down.
        command = ["mlflow", "server", "--host", HOST, "--port", str(mlflow_port)]
        command += ["--backend-store-uri", tracking_uri(), "--default-artifact-root", local_artifacts().as_uri()]
        command += ["--no-serve-artifacts", "--workers", "1", "--uvicorn-opts", "--log-level warning"]
        variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # saves 1.4 GB of memory
        found.append(_server("mlflow", mlflow_port, "/health", command, variables))
        mlflow_address = str(found[-1].address)
    variables = {PREFECT_VARIABLE: prefect_api, MLFLOW_VARIABLE: mlflow_address}
    found.append(_flows(prefect_api, variables))
    command = [sys.executable, "-m", "serving", "--params", "params.yaml", "--host", HOST, "--port", str(api_port)]
    command += ["--starter", str(starter)] if starter else []
    return [*found, _server("api", api_port, "/healthz", command, variables)]


def _server(name: str, port: int, health: str, command: list[str], variables: dict[str, str]) -> Service:
    address = f"http://{HOST}:{port}"
    return Service(name, command, address, lambda _: answers(f"{address}{health}"), variables)


def _flows(prefect_api: str, variables: dict[str, str]) -> Service:
    def is_serving(started_s: float) -> bool:
        age_s = heartbeat_age_s()
        if age_s is None or age_s >= min(LATE_S, time.time() - started_s):
            return False
        try:
            return None not in next_runs(prefect_api)
        except httpx.HTTPError:
            return False

    return Service("flows", [sys.executable, "-m", "flows"], None, is_serving, variables)


def up(wanted: list[Service]) -> None:
    """Start the services that are not running, wait until each is healthy, and log its address.

    Raises CracksError if a port is taken, UnavailableError with the end of its log if a service ended or did not
    become healthy. Services started before it keep running.
    """
    for service in wanted:
        started = services_started()
        holder = started.get(service.name)
        if holder is None or not is_alive(holder):
            if service.address is not None:
                _check_port(service)
            holder = {**identity_of(_start(service)), "address": service.address}
            write_json(project_root() / RECORD, started | {service.name: holder})
        _wait_until_healthy(service, holder)
        log.info("%-8s %s", service.name, holder["address"] or "serves the schedules")
        if service.address is None:
            _log_schedules(service.variables[PREFECT_VARIABLE])


def down() -> None:
    """End the services that `up` started, in reverse order, each with its child processes."""
    started = services_started()
    for name, holder in reversed(started.items()):
        if is_alive(holder):
            end_tree(psutil.Process(holder["pid"]), END_S)
            log.info("%-8s ended", name)
    write_json(project_root() / RECORD, {})
    end_heartbeat()  # also if the schedules had stopped already: now this is on purpose


def status() -> None:
    """Log which services run, the age of the heartbeat, the schedules, and the outcome of the last runs.

    Raises UnavailableError if the Prefect server does not answer.
    """
    started = services_started()
    for name, holder in started.items():
        log.info("%-8s %s  %s", name, "runs" if is_alive(holder) else "is dead", holder["address"] or "")
    if not started:
        log.info("Nothing was started here. `make up` starts it.")
    age_s = heartbeat_age_s()
    if age_s is None:
        log.info("The schedules have no heartbeat: they were not started, or were stopped.")
    else:
        late = " That is late: see .prefect/logs/flows.log, then `make up`." if age_s > LATE_S else ""
        log.info("The last heartbeat of the schedules was %.0f s ago.%s", age_s, late)
    address = os.environ.get(PREFECT_VARIABLE)  # set by the package if the server was started here
    if address:
        with reaching_prefect(address):
            _log_schedules(address)
            for run in last_runs(address):
                log.info("%s", run)


def _log_schedules(address: str) -> None:
    for line in next_runs(address):
        log.info("         %s", line or "a schedule without a next run: see the log of the Prefect server")


def _check_port(service: Service) -> None:
    port = int(str(service.address).rpartition(":")[2])
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        raise CracksError(
            f"Port {port} for {service.name} is taken by another program. End that, or choose another: "
            f"`make up {service.name.upper()}_PORT={port + 1}`."
        ) from None


def _start(service: Service) -> int:
    log_file = _log_file(service.name)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            service.command,
            cwd=project_root(),
            env=os.environ | service.variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process.pid


def _wait_until_healthy(service: Service, holder: Started) -> None:
    deadline_s = time.monotonic() + START_S
    while not service.is_healthy(holder["started_s"]):
        alive = is_alive(holder)
        if not alive or time.monotonic() > deadline_s:
            what = f"does not answer after {START_S} s; `make down` ends it" if alive else "ended"
            path = _log_file(service.name)
            last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            raise UnavailableError(f"{service.name} {what}. The end of {path}:\n  " + "\n  ".join(last))
        time.sleep(POLL_S)


def _log_file(name: str) -> Path:
    return project_root() / ".prefect" / "logs" / f"{name}.log"


def main() -> None:
    """Parse the command line and run the command."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    starting = commands.add_parser("up", help="start the services that are not running")
    for name, port in {"prefect": 4200, "mlflow": 5000, "api": 8000}.items():
        starting.add_argument(f"--{name}-port", type=int, default=port, help=f"default {port}")
    starter_help = "folder of a served model that the API uses until one is registered"
    starting.add_argument("--starter", type=Path, help=starter_help)
    commands.add_parser("down", help="end what `up` started")
    commands.add_parser("status", help="show the running services, the schedules and the last runs")
    args = parser.parse_args()
    if args.command == "up":
        load_params(project_root() / "params.yaml")  # a mistake in it is said here, not in the log of a service
        with reaching_prefect(os.environ.get(PREFECT_VARIABLE) or None):
            up(services(args.prefect_port, args.mlflow_port, args.api_port, args.starter))
    else:
        {"down": down, "status": status}[args.command]()


if __name__ == "__main__":
    run_main(main)
