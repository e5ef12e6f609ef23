"""Clean up Prefect runs: record the process of each run, so that runs of killed processes do not stay Running."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed

from flows.stages import LogLine
from pipeline.files import write_json
from pipeline.process_identity import ProcessIdentity, is_gone, this_process

MOST_RUNS = 200  # the server's limit per request; more than any schedule has due


def record_process(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Store the identity of the process that executes a run; a hook for `on_running`."""
    write_json(_folder() / f"{flow_run.id}.json", this_process())


def end_orphans(log_line: LogLine) -> None:
    """Set runs to Crashed whose process on this machine has ended; Prefect would leave them Running."""
    with get_client(sync_client=True) as client:
        for path, holder in _left_behind():
            run_id = UUID(path.stem)
            try:
                run = client.read_flow_run(run_id)
            except ObjectNotFound:
                run = None
            if run is not None and run.state is not None and not run.state.is_final():
                state: State[None] = Crashed(message=f"Its process {holder['pid']} was killed, or the machine was.")
                client.set_flow_run_state(run_id, state, force=True)
                log_line(f"Run {run.name} of {run_id} was left Running by process {holder['pid']}: now Crashed.")
            path.unlink(missing_ok=True)


def _left_behind() -> Iterator[tuple[Path, ProcessIdentity]]:
    for path in sorted(_folder().glob("*.json")):
        holder: ProcessIdentity = json.loads(path.read_text(encoding="utf-8"))
        if is_gone(holder):
            yield path, holder


def _folder() -> Path:
    return get_current_settings().home / "holders"


def cancel_missed(log_line: LogLine) -> None:
    """Cancel missed scheduled runs that a later run of the same deployment replaces."""
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            only_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
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
    known = list(flow_runs)
    last_start = max((run.start_time for run in known if run.start_time and _has_run(run)), default=None)
    overdue = sorted((run for run in known if _is_overdue(run, now)), key=_due)
    return [run for run in overdue if run is not overdue[-1] or (last_start is not None and _due(run) <= last_start)]


def _has_run(run: FlowRun) -> bool:
    return run.state_type not in (StateType.SCHEDULED, StateType.CANCELLED)  # a cancelled run has a start time too


def _is_overdue(run: FlowRun, now: datetime) -> bool:
    return run.auto_scheduled and run.state_type == StateType.SCHEDULED and _due(run) <= now


def _due(run: FlowRun) -> datetime:
    return run.expected_start_time or datetime.max.replace(tzinfo=UTC)
