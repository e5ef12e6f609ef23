"""Serve all flows with their schedules, against the Prefect server of PREFECT_API_URL: `python -m flows`.

While it runs, it renews the heartbeat, sends an alert if that stops, and cleans up after flows that were killed.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runner import Runner
from prefect.settings import get_current_settings

from flows import flow_runs, stages
from flows.deployments import deployments
from flows.services import answers, end_tree, reaching_prefect
from pipeline.errors import CracksError
from pipeline.monitoring.heartbeat import INTERVAL_S, end_heartbeat, renew_heartbeat, watch_heartbeat
from pipeline.params import Params, load_params
from pipeline.project import project_root
from pipeline.stage import run_main

log = logging.getLogger(__name__)

GAVE_UP = "Service exceeded error threshold."  # Prefect's message when its loop ends without a server
POLL_S = 5
POLLED_WITHIN = timedelta(seconds=60)  # several polls of the runner
END_S = 30  # for flows to end their stages and report that to the server


class FlowServer(Runner):
    """Prefect's runner of served flows that, on SIGTERM, lets running flows shut down cleanly."""

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """End the running flows with their stages, then this process; Prefect would kill them at once."""
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it logs a traceback for each socket
        for child in psutil.Process().children():
            end_tree(child, END_S)
        sys.exit(0)


def clean_up() -> bool:
    """End processes and runs of killed flows, cancel missed runs; return whether the Prefect server answered."""
    stages.end_orphans(log.warning)
    try:
        flow_runs.end_orphans(log.warning)
        flow_runs.cancel_missed(log.warning)
    except (httpx.HTTPError, PrefectException) as error:
        log.warning("The Prefect server does not answer: %s", error)
        return False
    return True


def is_polled(wanted: set[str], since: datetime) -> bool:
    """Return whether the server has the wanted deployments, by name, and was asked for their runs since then."""
    with get_client(sync_client=True) as client:
        found = flow_runs.our_deployments(client)
    return wanted <= {each.name for each in found if each.last_polled and each.last_polled >= since}


def keep_heartbeat(stop: threading.Event, wanted: set[str]) -> None:
    """Clean up until `stop` is set; renew the heartbeat whenever the Prefect server is polled for runs to start."""
    started, is_serving = datetime.now(UTC), False
    while not stop.is_set():
        try:
            if clean_up() and is_polled(wanted, max(started, datetime.now(UTC) - POLLED_WITHIN)):
                renew_heartbeat()
                is_serving = True
        except Exception as error:  # such as a full disk: the schedules continue, and so must this thread
            log.error("The heartbeat could not be renewed: %s", error, exc_info=not isinstance(error, OSError))
        stop.wait(INTERVAL_S if is_serving else 1)


@contextmanager
def heartbeat_threads(wanted: set[str]) -> Iterator[None]:
    """Renew and watch the heartbeat of the wanted deployments in threads inside the block, and not after it."""
    stop = threading.Event()
    watch = threading.Thread(target=keep_heartbeat, args=(stop, wanted), daemon=True)
    watch.start()
    threading.Thread(target=watch_heartbeat, args=(stop,), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        watch.join()


def serve(params: Params, address: str) -> None:
    """Serve all flows until interrupted; start again if Prefect gives up because its server is unavailable."""
    while True:
        try:
            # One run at a time. Schedules are not paused on shutdown: runs missed meanwhile show as late.
            server = FlowServer(limit=1, pause_on_shutdown=False)
            for deployment in deployments(params):
                server.add_deployment(deployment)
            asyncio.run(server.start())
        except* Exception as errors:
            if errors.split(is_transient)[1] is not None:
                raise
        log.warning("Prefect has given up on its server. The schedules start again when it answers.")
        time.sleep(POLL_S)
        while not answers(f"{address}/health"):
            time.sleep(POLL_S)


def is_transient(error: BaseException) -> bool:
    """Return whether an error only means that the server is unavailable or still starting."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx.TransportError) or str(error) == GAVE_UP


def main() -> None:
    """Serve the flows until interrupted."""
    params = load_params(project_root() / "params.yaml")
    address = get_current_settings().api.url
    if address is None:
        raise CracksError("PREFECT_API_URL is not set: `make up` starts a server and serves the flows.")
    with reaching_prefect(address):
        clean_up()  # before any schedule can start a run
    try:
        # The names are those that are served: a later mistake in params.yaml does not stop the heartbeat.
        with heartbeat_threads({deployment.name for deployment in deployments(params)}):
            serve(params, address)
    except (KeyboardInterrupt, SystemExit):  # stopped on purpose: no alert
        end_heartbeat()
        raise


if __name__ == "__main__":
    run_main(main)
