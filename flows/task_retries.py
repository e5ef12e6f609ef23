"""How a task ends that cannot do its work, and which tasks Prefect tries again."""

from typing import Any

from prefect import State, Task
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed
from prefect.tasks import exponential_backoff

from pipeline.errors import CracksError, UnavailableError
from pipeline.params import Flow

UNAVAILABLE = "Unavailable"  # name of the state Failed if another try can help


def failed(error: CracksError) -> State:
    """Return a state for an error that a user can act on; for an exception, Prefect would log a traceback."""
    return Failed(message=str(error), name=UNAVAILABLE if isinstance(error, UnavailableError) else None)


def retries(settings: Flow) -> dict[str, Any]:
    """Return the options of a task that is tried again, after pauses that double, while it ends as Unavailable."""
    return {
        "retries": settings.max_retries,
        "retry_delay_seconds": exponential_backoff(settings.retry_pause_s),
        "retry_condition_fn": _is_unavailable,
    }


def _is_unavailable(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    return state.name == UNAVAILABLE
