"""Services that flows need: the record of those that `make up` started here, and what a Prefect server says.

The server is asked by HTTP, because an import of Prefect takes a second.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import psutil

from pipeline.process_identity import ProcessIdentity, is_alive
from pipeline.project import project_root

PREFECT = "prefect"
TAG = "cracks"  # of the deployments of this project: a Prefect server may have those of others too
RECORD = Path(".prefect/local.json")  # of the services that were started; relative to the project's folder
LAST_RUNS = 5


class Started(ProcessIdentity):
    """Record of a started service."""

    address: str | None


def services_started() -> dict[str, Started]:
    """Return the services that were started, including ended ones, by name in order of their start."""
    try:
        found: dict[str, Started] = json.loads((project_root() / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def local_prefect() -> str | None:
    """Return the API address of the Prefect server that was started here, None if it is not running."""
    server = services_started().get(PREFECT)
    return f"{server['address']}/api" if server is not None and is_alive(server) else None


def answers(address: str) -> bool:
    """Return whether a service answers at an address with a success status."""
    try:
        return httpx.get(address, timeout=20).is_success
    except httpx.HTTPError:
        return False


def next_runs(api: str) -> list[str | None]:
    """Return a line for each active schedule of these flows, with its zone and next run; None if it has no next run.

    Raises httpx.HTTPError if the Prefect server `api` does not answer.
    """
    lines: list[str | None] = []
    now = datetime.now(UTC).isoformat()
    ours = {"paused": {"eq_": False}, "tags": {"all_": [TAG]}}
    for deployment in _ask(api, "deployments", sort="NAME_ASC", deployments=ours):
        for schedule in [each["schedule"] for each in deployment["schedules"] if each["active"]]:
            to_come = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": now}}
            mine = {"id": {"any_": [deployment["id"]]}}
            sort = "EXPECTED_START_TIME_ASC"
            runs = _ask(api, "flow_runs", flow_runs=to_come, deployments=mine, sort=sort, limit=1)
            zone = ZoneInfo(schedule["timezone"] or "UTC")
            times = [datetime.fromisoformat(run["expected_start_time"]).astimezone(zone) for run in runs]
            rule = schedule.get("cron") or "without cron"
            lines += [f"{deployment['name']}: {rule} in {zone}, next {at:%Y-%m-%d %H:%M %Z}" for at in times] or [None]
    return lines


def last_runs(api: str) -> list[str]:
    """Return a line for each of the last runs. Raises httpx.HTTPError if the Prefect server does not answer."""
    started = {"start_time": {"is_null_": False}}
    lines = []
    for run in _ask(api, "flow_runs", flow_runs=started, sort="START_TIME_DESC", limit=LAST_RUNS):
        reason = ((run["state"] or {}).get("message") or "").partition("\n")[0]
        lines.append(f"{run['start_time'][:16]}  {run['state_name']:<10} {run['name']}  {reason}")
    return lines


def _ask(api: str, what: str, **condition: object) -> list[dict[str, Any]]:
    answer = httpx.post(f"{api}/{what}/filter", json=condition, timeout=20).raise_for_status()
    return list(answer.json())


def end_tree(process: psutil.Process, timeout_s: float) -> None:
    """Terminate a process; after the timeout, kill it and those of its children that are left."""
    family = [process, *process.children(recursive=True)]
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    for member in psutil.wait_procs(family, timeout=timeout_s)[1]:
        with suppress(psutil.NoSuchProcess):
            member.kill()
