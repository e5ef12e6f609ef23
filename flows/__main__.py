"""Serve all flows with their schedules, against the Prefect server of PREFECT_API_URL: `python -m flows`.

While it runs it renews the heartbeat, and tidies up after flows that were killed.
"""

import logging
import threading
from typing import Any

import httpx
from prefect import Flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectException
from prefect.schedules import Schedule
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType

from flows import runs, stages
from flows.training import training
from pipeline.errors import CracksError, UnavailableError
from pipeline.heartbeat import INTERVAL_S, beat
from pipeline.params import Params, load_params
from pipeline.stage import run_main
from pipeline.tracking import project_root

log = logging.getLogger(__name__)


def flows_and_schedules(params: Params) -> list[tuple[Flow[..., Any], Schedule | None]]:
    """Return every flow and when it starts by itself; None: on demand alone."""
    return [(training, None)]


def deployments(params: Params) -> list[RunnerDeployment]:
    """Return a deployment for each flow, of the same name."""
    return [
        RunnerDeployment.from_flow(flow, flow.name, schedule=schedule, entrypoint_type=EntrypointType.MODULE_PATH)
        for flow, schedule in flows_and_schedules(params)
    ]


def tidy_up() -> None:
    """End what killed flows left, and cancel what a pause of the schedules piled up."""
    stages.end_orphans(log.warning)
    try:
        runs.end_orphans(log.warning)
        runs.collapse_late(log.warning)
    except (httpx.HTTPError, PrefectException) as error:
        log.warning("The Prefect server does not answer: %s", error)


def keep_watch(stop: threading.Event) -> None:
    """Renew the heartbeat and tidy up, until told to stop."""
    while not stop.wait(INTERVAL_S):
        beat()
        tidy_up()


def main() -> None:
    """Serve until told to end."""
    params = load_params(project_root() / "params.yaml")
    address = get_current_settings().api.url
    if address is None:
        raise CracksError("PREFECT_API_URL is not set: `make up` starts a server and serves the flows.")
    try:
        httpx.get(f"{address}/health", timeout=20).raise_for_status()
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"The Prefect server {address} does not answer: {error}. Start it, or `make up`."
        ) from None
    beat()
    tidy_up()
    stop = threading.Event()
    watch = threading.Thread(target=keep_watch, args=(stop,), daemon=True)
    watch.start()
    try:
        serve(*deployments(params), limit=1, print_starting_message=False)
    finally:
        stop.set()
        watch.join()


if __name__ == "__main__":
    run_main(main)
