"""The training flow: every DVC stage as a Prefect task, in DVC's order."""

import sys

from prefect import State, flow, get_run_logger, task
from prefect.states import Completed, Failed

from flows.stages import reproduce, stages_in_order
from pipeline.errors import CracksError
from pipeline.stage import run_main


@task(task_run_name="{stage}")
def run_stage(stage: str) -> State:
    """Bring one stage up to date; one that did not have to run ends as Cached."""
    try:
        has_run = reproduce(stage, get_run_logger().info)
    except CracksError as error:  # a state, not an exception: Prefect would log a traceback
        return Failed(message=str(error))
    return Completed(message="ran") if has_run else Completed(message="nothing changed", name="Cached")


@flow(name="training")
def training() -> State:
    """Take the data in params.yaml to a registered model; the first stage that fails ends the run."""
    for stage in stages_in_order():
        state = run_stage(stage, return_state=True)
        if not state.is_completed():
            return state
    return Completed(message="every stage is up to date")


def main() -> None:
    """Run the flow once, on the server of PREFECT_API_URL or on an embedded one."""
    state = training(return_state=True)
    if not state.is_completed():
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
