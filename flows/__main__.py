"""Serve all flows with their schedules, against the Prefect server of PREFECT_API_URL: `python -m flows`.

While it runs it renews the heartbeat, tells someone when that stops, and tidies up after flows that were killed.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect import Flow
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectException
from prefect.runner import Runner
from prefect.schedules import Cron, Schedule
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType

from flows import processes, runs, stages
from flows.monitoring import monitoring
from flows.promotion import promotion, rollback
from flows.retraining import retraining
from flows.services import answers
from flows.training import training
from pipeline.errors import CracksError, UnavailableError
from pipeline.monitoring.heartbeat import INTERVAL_S, end_heartbeat, renew_heartbeat
from pipeline.monitoring.heartbeat_watch import watch_heartbeat
from pipeline.params import Params, load_params
from pipeline.project import project_root
from pipeline.stage import run_main

log = logging.getLogger(__name__)

GAVE_UP = "Service exceeded error threshold."  # what Prefect's loop says that ends because its server is away
POLL_S = 5
END_S = 30  # for flows to end their stages and say so to the server


class FlowServer(Runner):
    """Prefect's runner of served flows, which at SIGTERM lets the flows that run end in their own way."""

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """End the flows that run, each with its stages, then this process; Prefect would kill them outright."""
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of its sockets, each with a traceback
        processes.end_children(END_S)
        sys.exit(0)


def flows_and_schedules(params: Params) -> list[tuple[Flow[..., Any], Schedule | None]]:
    """Return every flow and when it starts by itself; None: on demand alone."""
    return [
        (training, None),
        (retraining, Cron(params.retrain.cron)),
        (monitoring, Cron(params.monitor.cron)),
        (promotion, None),
        (rollback, None),
    ]


def deployments(params: Params) -> list[RunnerDeployment]:
    """Return a deployment for each flow, of the same name."""
    return [
        RunnerDeployment.from_flow(flow, flow.name, schedule=schedule, entrypoint_type=EntrypointType.MODULE_PATH)
        for flow, schedule in flows_and_schedules(params)
    ]


def clean_up() -> bool:
    """End what killed flows left, cancel what a pause piled up; return whether the Prefect server answered."""
    stages.end_orphans(log.warning)
    try:
        runs.end_orphans(log.warning)
        runs.cancel_missed(log.warning)
    except (httpx.HTTPError, PrefectException) as error:
        log.warning("The Prefect server does not answer: %s", error)
        return False
    return True


def keep_heartbeat(stop: threading.Event) -> None:
    """Tidy up until told to stop, and give a sign of life each time that the server answers: no other can schedule."""
    while not stop.is_set():
        try:
            if clean_up():
                renew_heartbeat()
        except Exception:  # a full disk, for one: the schedules go on, and so must this
            log.exception("No sign of life could be given")
        stop.wait(INTERVAL_S)


@contextmanager
def heartbeat_threads() -> Iterator[None]:
    """Give signs of life, and watch them, as long as the block lasts; none comes after it."""
    stop = threading.Event()
    watch = threading.Thread(target=keep_heartbeat, args=(stop,), daemon=True)
    watch.start()
    threading.Thread(target=watch_heartbeat, args=(stop,), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        watch.join()


def serve(params: Params, address: str) -> None:
    """Serve all flows until told to end, and begin anew where Prefect gives up while its server is away."""
    while True:
        try:
            # One run at a time. At its end the schedules are not paused: what is missed meanwhile shows as late.
            server = FlowServer(limit=1, pause_on_shutdown=False)
            for deployment in deployments(params):
                server.add_deployment(deployment)
            asyncio.run(server.start())
        except* Exception as errors:
            if errors.split(is_transient)[1] is not None:
                raise
        log.warning("Prefect has given up on its server. The schedules begin anew when that answers.")
        time.sleep(POLL_S)
        while not answers(f"{address}/health"):
            time.sleep(POLL_S)


def is_transient(error: BaseException) -> bool:
    """Return whether an error means no more than that the server is away, or not itself yet."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    return isinstance(error, httpx.TransportError) or str(error) == GAVE_UP


def main() -> None:
    """Serve until told to end."""
    params = load_params(project_root() / "params.yaml")
    address = get_current_settings().api.url
    if address is None:
        raise CracksError("PREFECT_API_URL is not set: `make up` starts a server and serves the flows.")
    if not answers(f"{address}/health"):
        raise UnavailableError(f"The Prefect server {address} does not answer. Start it, or `make up`.")
    clean_up()  # before anything can fire
    try:
        with heartbeat_threads():
            serve(params, address)
    except (KeyboardInterrupt, SystemExit):  # a person has ended it, which is no death
        end_heartbeat()
        raise


if __name__ == "__main__":
    run_main(main)
