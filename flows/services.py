"""The services that flows need: the record of those that `make up` has started on this machine, and which answer."""

import json
from pathlib import Path

import httpx

from pipeline.files import write_json
from pipeline.process_identity import ProcessIdentity, is_alive
from pipeline.project import project_root

PREFECT = "prefect"


class Started(ProcessIdentity):
    """What is written down of a service."""

    address: str | None


def services_started() -> dict[str, Started]:
    """Return the services that were started, dead ones too, by name in the order of their start."""
    try:
        found: dict[str, Started] = json.loads(_record().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def write_started(started: dict[str, Started]) -> None:
    """Write down which services were started."""
    write_json(_record(), started)


def local_prefect() -> str | None:
    """Return the address of the API of the Prefect server that runs here, None where none does."""
    server = services_started().get(PREFECT)
    return f"{server['address']}/api" if server is not None and is_alive(server) else None


def answers(address: str) -> bool:
    """Return whether a service answers at an address, and says that it is well."""
    try:
        return httpx.get(address, timeout=20).is_success
    except httpx.HTTPError:
        return False


def _record() -> Path:
    return project_root() / ".prefect" / "local.json"
