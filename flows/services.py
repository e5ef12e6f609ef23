"""Services that flows need: the record of those that `make up` started on this machine, and health checks."""

import json
from pathlib import Path

import httpx

from pipeline.files import write_json
from pipeline.process_identity import ProcessIdentity, is_alive
from pipeline.project import project_root

PREFECT = "prefect"


class Started(ProcessIdentity):
    """Record of a started service."""

    address: str | None


def services_started() -> dict[str, Started]:
    """Return the services that were started, including ended ones, by name in order of their start."""
    try:
        found: dict[str, Started] = json.loads(_record().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def write_started(started: dict[str, Started]) -> None:
    """Store the record of started services."""
    write_json(_record(), started)


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


def _record() -> Path:
    return project_root() / ".prefect" / "local.json"
