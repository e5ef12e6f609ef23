"""Services that flows need: the record of those that `make up` started here, and what a Prefect server says.

The server is asked by HTTP, because an import of Prefect takes a second.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import psutil

from pipeline.errors import CracksError, UnavailableError
from pipeline.files import read_json
from pipeline.process_identity import ProcessIdentity, is_alive
from pipeline.project import project_root
from pipeline.safe_text import without_passwords

PREFECT = "prefect"
TAG = "cracks"  # of the deployments of this project: a Prefect server may have those of others too
RECORD = Path(".prefect/local.json")  # of the services that were started; relative to the project's folder
LAST_RUNS = 5
TIMEOUT_S = 20
OURS = {"tags": {"all_": [TAG]}}


class Started(ProcessIdentity):
    """Record of a started service."""

    address: str | None


def services_started() -> dict[str, Started]:
    """Return the services that were started, including ended ones, by name in order of their start."""
    return dict(read_json(project_root() / RECORD, {}))


def local_prefect() -> str | None:
    """Return the API address of the Prefect server that was started here, None if it is not running."""
    server = services_started().get(PREFECT)
    return f"{server['address']}/api" if server is not None and is_alive(server) else None


def answers(address: str) -> bool:
    """Return whether a service answers at an address with a success status."""
    try:
        return httpx.get(address, timeout=TIMEOUT_S).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def reaching_prefect(api: str | None) -> Iterator[None]:
    """Check that a Prefect server answers at `api`, and run the block; None is an embedded server, not checked.

    Raises CracksError if `api` is no address, UnavailableError if nothing answers there, or no Prefect server, before
    the block or in it.
    """
    kind: type[CracksError] = UnavailableError
    try:
        if api is None or _is_prefect(api):
            yield
            return
        why = "what answers there is no Prefect server. The address of one ends with /api"
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        kind, why = CracksError, str(error).rstrip(".")
    except httpx.HTTPError as error:
        why = (str(error) or type(error).__name__).partition("\n")[0]
    problem = without_passwords(f"The Prefect server {api or 'that was started'} does not answer: {why}")
    raise kind(
        f"{problem}. Start it, or correct or unset PREFECT_API_URL; without it, `make up` starts a server, and a "
        "single flow one of its own."
    )


def _is_prefect(api: str) -> bool:
    with _client(api) as client:
        answer = client.get("/health")
    return answer.is_success and answer.text.strip() == "true"


def next_runs(api: str) -> list[str | None]:
    """Return a line for each active schedule of these flows, with its zone and next run; None if it has no next run.

    Raises httpx.HTTPError if the Prefect server `api` does not answer.
    """
    lines: list[str | None] = []
    now = datetime.now(UTC).isoformat()
    for deployment in _ask(api, "deployments", sort="NAME_ASC", deployments={"paused": {"eq_": False}, **OURS}):
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
    """Return a line for each of the last runs of these flows.

    Raises httpx.HTTPError if the Prefect server does not answer.
    """
    started = {"start_time": {"is_null_": False}, **OURS}
    lines = []
    for run in _ask(api, "flow_runs", flow_runs=started, sort="START_TIME_DESC", limit=LAST_RUNS):
        reason = ((run["state"] or {}).get("message") or "").partition("\n")[0]
        lines.append(f"{run['start_time'][:16]}  {run['state_name']:<10} {run['name']}  {reason}")
    return lines


def _client(api: str) -> httpx.Client:
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    return httpx.Client(base_url=api, timeout=TIMEOUT_S, auth=(user, password) if user else None)


def _ask(api: str, what: str, **condition: object) -> list[dict[str, Any]]:
    with _client(api) as client:
        return list(client.post(f"/{what}/filter", json=condition).raise_for_status().json())


def end_tree(process: psutil.Process, timeout_s: float) -> None:
    """Terminate a process; after the timeout, kill it and those of its children that are left."""
    family = [process, *process.children(recursive=True)]
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    for member in psutil.wait_procs(family, timeout=timeout_s)[1]:
        with suppress(psutil.NoSuchProcess):
            member.kill()
