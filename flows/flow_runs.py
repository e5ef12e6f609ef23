"""How Prefect runs begin and end: as which state, which tasks are tried again, and what killed processes leave."""

import logging
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from prefect import State, Task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger, task_run_logger
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed, Failed

from flows import stages
from flows.services import OURS, TAG, reaching_prefect
from flows.stages import LogLine
from pipeline import params
from pipeline.errors import CracksError, RefusedError, UnavailableError, with_remedy
from pipeline.process_identity import is_gone, this_process
from pipeline.stage import run_main

UNAVAILABLE = "Unavailable"  # name of the state Failed if another try can help
# Names of the state Failed, by the exit code of the error. That of a defect (1) keeps the name Failed.
FAILURES = {
    CracksError.exit_code: "Bad input",
    RefusedError.exit_code: "Refused",
    UnavailableError.exit_code: UNAVAILABLE,
}
MOST_RUNS = 200  # the server's limit per request; more than any schedule has due
EXECUTED = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING, StateType.CANCELLING]}}})


def record_process(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tag a run, label it with its process, and end the runs of killed processes; a hook for `on_running`.

    The server keeps the label, because a file on this machine would not say which server the run belongs to. The tag of
    a deployment does not reach the flows that its runs call.
    """
    me = this_process()
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags={*flow_run.tags, TAG})
        client.update_flow_run_labels(flow_run.id, {f"{TAG}.{name}": str(value) for name, value in me.items()})
    end_orphans(flow_run_logger(flow_run, flow).warning)


def failed(raised: CracksError | OSError) -> State:
    """Return a state for an error that a user can act on; for an exception, Prefect would log a traceback."""
    error = with_remedy(raised)
    return Failed(message=str(error), name=FAILURES.get(error.exit_code))


def exit_code(state: State[Any]) -> int:
    """Return the exit code of a run that ended in a state: 0 done, 1 defect, 2 bad input, 3 refused, 4 unavailable."""
    return 0 if state.is_completed() else next((code for code, name in FAILURES.items() if name == state.name), 1)


def error_of(state: State[Any]) -> CracksError:
    """Return the error that `failed` made a state of."""
    error = CracksError(str(state.message))
    error.exit_code = exit_code(state)
    return error


def retries(settings: params.Flow, ended: threading.Event | None = None) -> dict[str, Any]:
    """Return the options of a task that is tried again, after pauses that double, while it ends as Unavailable.

    The condition waits itself, until `ended` is set at the latest: nothing ends a pause of Prefect's in a thread.
    """
    ended = ended or threading.Event()

    def is_tried_again(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
        if state.name != UNAVAILABLE:
            return False
        pause_s = settings.retry_pause_s * 2 ** (task_run.run_count - 1)
        task_run_logger(task_run, task).warning("%s It is tried again in %g s.", state.message, pause_s)
        return not ended.wait(pause_s)

    return {"retries": settings.max_retries, "retry_condition_fn": is_tried_again}


def without_empty_traceback(record: logging.LogRecord) -> bool:
    """Remove the traceback "NoneType: None", which Prefect logs for a task without an exception; a filter."""
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(without_empty_traceback)


def end_orphans(log_line: LogLine) -> None:
    """Set runs to Crashed whose process on this machine has ended; Prefect would leave them Running."""
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=EXECUTED, limit=MOST_RUNS):
            pid, started_s, host = (run.labels.get(f"{TAG}.{name}") for name in ("pid", "started_s", "host"))
            if pid and is_gone({"pid": int(pid), "started_s": float(started_s or 0), "host": str(host)}):
                last = client.read_flow_run(run.id).state
                if last is not None and last.is_final():
                    continue  # it ended by itself after it was listed
                state: State[None] = Crashed(message=f"Its process {pid} was killed, or the machine was.")
                client.set_flow_run_state(run.id, state, force=True)
                log_line(f"Run {run.name} of {run.id} was left Running by process {pid}: now Crashed.")


def clean_up(log_line: LogLine) -> None:
    """Cancel missed runs, end stages of killed flows, repair DVC's files; call this when a flow of stages starts."""
    cancel_missed(log_line)
    stages.end_orphans(log_line)
    stages.clear_locks(log_line)


def run_once(flow: Flow[..., State[Any]], **parameters: object) -> None:
    """Run a flow on the server of PREFECT_API_URL, or on an embedded one; exit with the code of its state."""

    def main() -> None:
        with reaching_prefect(get_current_settings().api.url):
            state = flow(**parameters, return_state=True)
        sys.exit(exit_code(state))

    run_main(main)


def our_deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """Return the deployments of these flows; a server may have those of others too."""
    return client.read_deployments(deployment_filter=DeploymentFilter.model_validate(OURS))


def cancel_missed(log_line: LogLine) -> None:
    """Cancel missed scheduled runs that a later run of the same deployment replaces."""
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        for deployment in our_deployments(client):
            only_it = DeploymentFilter.model_validate({"id": {"any_": [deployment.id]}})
            found = client.read_flow_runs(
                deployment_filter=only_it, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=MOST_RUNS
            )
            for run in superseded(found, now):
                state: State[None] = Cancelled(message="a later run of this schedule replaces it")
                client.set_flow_run_state(run.id, state, force=True)
                log_line(f"Run {run.name}, due {run.expected_start_time}, was missed; a later one replaces it.")


def superseded(flow_runs: Iterable[FlowRun], now: datetime) -> list[FlowRun]:
    """Return the scheduled runs of one deployment that are no longer needed.

    After a pause, all missed runs are due at once, and one run does the work of all of them. Only the newest overdue
    run is kept, and only if it was due after the start of the last run.
    """

    def due(run: FlowRun) -> datetime:
        return run.expected_start_time or datetime.max.replace(tzinfo=UTC)

    known = list(flow_runs)
    has_not_run = (StateType.SCHEDULED, StateType.CANCELLED)  # a cancelled run has a start time too
    starts = [run.start_time for run in known if run.start_time and run.state_type not in has_not_run]
    scheduled = [run for run in known if run.auto_scheduled and run.state_type == StateType.SCHEDULED]
    overdue = sorted((run for run in scheduled if due(run) <= now), key=due)
    return [run for run in overdue if run is not overdue[-1] or (starts and due(run) <= max(starts))]
