"""The retraining flow: takes new labelled batches, trains on them, applies the gate, and sends a message."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Flow, State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed

from flows import flow_runs
from flows.flow_runs import error_of, failed, retries
from flows.training import training
from pipeline.errors import CracksError, RefusedError, UnavailableError
from pipeline.inbox import retraining as steps
from pipeline.inbox.batches import Refused, describe, not_taken, read_record, take_all, untrained
from pipeline.params import Params, load_params
from pipeline.project import REPORTS, project_root
from pipeline.registry.run_summary import read_report

NOTHING_TO_DO = "Nothing to do"
TITLE = "Concrete cracks: "


def notify_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Send a message why a run failed, also for a defect; a hook for `on_failure`."""
    steps.notify_once(project_root(), "failure", f"{TITLE}retraining failed", str(state.message).splitlines())


def clear_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Clear the last failure message, so that the next failure is always sent; a hook for `on_completion`."""
    steps.clear_notification(project_root(), "failure")


@flow(
    name="retraining",
    on_running=[flow_runs.record_process],
    on_failure=[notify_failure],
    on_completion=[clear_failure],
)
def retraining() -> State:
    """Train on new batches in the inbox, if there are any."""
    root = project_root()
    try:
        params = load_params(root / "params.yaml")
        with steps.exclusive_lock(root):
            flow_runs.clean_up(get_run_logger().warning)
            return _retrain(root, params)
    except RefusedError as error:
        return Completed(name=NOTHING_TO_DO, message=str(error))
    except (CracksError, OSError) as error:
        return failed(error)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def step(name: str, work: Callable[[], str | None]) -> State:
    """Do the work of a step; what it returns is the message of the state."""
    try:
        return Completed(message=work())
    except (CracksError, OSError) as error:
        return failed(error)


def _run_step(name: str, params: Params, work: Callable[[], str | None]) -> str:
    state = step.with_options(**retries(params.flow))(name, work, return_state=True)
    if not state.is_completed():
        raise error_of(state)
    return str(state.message)


def _retrain(root: Path, params: Params) -> State:
    if params.retrain.dataset:
        outcomes = take_all(root, params, now=datetime.now(UTC), by="retraining")
        for refused in outcomes:
            if isinstance(refused, Refused):
                lines = describe(refused).splitlines()
                steps.notify_once(root, refused.name, f"{TITLE}a batch was set aside", lines)
    new = untrained(read_record(root))
    if not new:
        _notify_if_old(root, params)
        others = ", ".join(path.name for path in not_taken(root))
        why = f" Only archives are taken, and not {others}." if others else ""
        return Completed(name=NOTHING_TO_DO, message=f"No new batch is in the inbox.{why}")
    _run_step("store-batches", params, lambda: steps.store_batches(root, params))
    state = training(return_state=True)
    if not state.is_completed():
        raise error_of(state)
    _run_step("push-results", params, lambda: steps.push_results(root))
    version = str(read_report(root / REPORTS, "registered.json")["version"])
    decision = _run_step("promote", params, lambda: steps.promote(params, version))
    lines = steps.summary_message(root, new, version, decision)
    steps.notify_once(root, "training", f"{TITLE}{decision.split(':')[0]}", lines)
    steps.record_training(root, version)
    return Completed(message=decision)


def _notify_if_old(root: Path, params: Params) -> None:
    try:
        version = steps.overdue(params, datetime.now(UTC))
        if version:
            lines = [f"Version {version} is older than {params.retrain.max_age_days} days, and no new batch has come."]
            title = f"{TITLE}the model is old"
            steps.notify_once(root, "age", title, lines, lambda: [steps.images_to_label(root, params)])
    except UnavailableError as error:  # the next run checks again
        get_run_logger().warning(str(error))


if __name__ == "__main__":
    flow_runs.run_once(retraining)
