"""The training flow: every DVC stage as a Prefect task; independent stages run in parallel."""

import functools
import queue
from collections.abc import Callable, Mapping
from graphlib import TopologicalSorter

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed

from flows import artifacts, flow_runs, stages
from flows.task_retries import failed, retries
from pipeline.errors import CracksError
from pipeline.params import Params, load_params
from pipeline.project import REPORTS, project_root

Futures = dict[str, PrefectFuture[State]]


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, has_to_run: bool, runner: stages.StageRunner) -> State:
    """Bring one stage up to date; a stage that did not have to run ends as Cached."""
    try:
        has_run = has_to_run and runner.reproduce(stage, get_run_logger().info)
    except CracksError as error:
        return Cancelled(message="ended with its flow") if runner.is_ended else failed(error)
    return Completed(message="ran") if has_run else Completed(message="nothing changed", name="Cached")


def run_ready(
    needs: Mapping[str, frozenset[str]], submit: Callable[[str, Futures], PrefectFuture[State]], max_parallel: int
) -> dict[str, State]:
    """Submit each stage once all stages that it needs are completed, at most `max_parallel` at a time.

    Returns:
        The state of each stage that was started. Stages that need a failed stage are not started; the others are.
    """
    order = TopologicalSorter(needs)
    order.prepare()
    finished: queue.Queue[str] = queue.Queue()
    ready: list[str] = []
    futures: Futures = {}
    states: dict[str, State] = {}
    while order.is_active():
        ready += sorted(order.get_ready())
        while ready and len(futures) - len(states) < max_parallel:
            stage = ready.pop(0)
            futures[stage] = submit(stage, {name: futures[name] for name in needs[stage]})
            futures[stage].add_done_callback(functools.partial(_announce, finished, stage))
        if len(futures) == len(states):
            break  # the remaining stages need one that failed
        stage = finished.get()
        futures[stage].wait()  # sets the final state; the callback is called before that
        states[stage] = futures[stage].state
        if states[stage].is_completed():
            order.done(stage)
    return states


def _announce(finished: queue.Queue[str], stage: str, _: PrefectFuture[State]) -> None:
    finished.put(stage)


@flow(name="training", on_running=[flow_runs.record_process])
def training() -> State:
    """Train and register a model from the data in params.yaml; stages that need a failed stage are not started."""
    flow_runs.clean_up(get_run_logger().warning)
    try:
        params, reports = load_params(project_root() / "params.yaml"), project_root() / REPORTS
        outcome = reproduce_all(params)
        artifacts.publish_contracts(params, reports)
        if outcome.is_completed():
            artifacts.publish_results(params, reports)
    except CracksError as error:
        return failed(error)
    return outcome


def reproduce_all(params: Params) -> State:
    """Bring every stage up to date, each as a task; call this inside a flow.

    Raises:
        CracksError: DVC cannot read the stages.
    """
    graph = stages.read_graph()
    runner = stages.StageRunner(params.flow)
    stage_task = run_stage.with_options(**retries(params.flow))

    def submit(stage: str, upstream: Futures) -> PrefectFuture[State]:
        unchanged = not graph[stage].has_changed and all(future.state.name == "Cached" for future in upstream.values())
        return stage_task.submit(stage, not unchanged, runner, return_state=False, wait_for=list(upstream.values()))

    try:
        needs = {name: stage.needs for name, stage in graph.items()}
        states = run_ready(needs, submit, params.flow.max_parallel_stages)
    finally:
        runner.end()
    return _outcome(states, sorted(graph.keys() - states.keys()))


def _outcome(states: Mapping[str, State], not_started: list[str]) -> State:
    failures = [str(state.message) for state in states.values() if not state.is_completed()]
    if not failures:
        return Completed(message="every stage is up to date")
    if not_started:
        failures.append(f"Not started: {', '.join(not_started)}.")
    return Failed(message="\n".join(failures))


if __name__ == "__main__":
    flow_runs.run_once(training)
