"""The training flow: every DVC stage as a Prefect task; independent stages run in parallel."""

from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.states import Cancelled, Completed, Failed

from flows import flow_runs, stages
from flows.flow_runs import FAILURES, exit_code, failed, retries
from pipeline.errors import CracksError
from pipeline.params import Params, load_params
from pipeline.project import REPORTS, project_root
from pipeline.registry import run_summary

CACHED = "Cached"  # name of the state Completed if the stage did not run


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, has_changed: bool, needed_have_run: list[bool], runner: stages.StageRunner) -> State[bool]:
    """Bring one stage up to date; return whether its outputs may have changed. If not, it ends as Cached."""
    try:
        has_run = (has_changed or any(needed_have_run)) and runner.reproduce(stage, get_run_logger().info)
    except CracksError as error:
        return Cancelled(message="ended with its flow") if runner.ended.is_set() else failed(error)
    return Completed(message="ran", data=True) if has_run else Completed(message="unchanged", name=CACHED, data=False)


@flow(name="training", on_running=[flow_runs.record_process])
def training() -> State:
    """Train and register a model from the data in params.yaml; stages that need a failed stage are not started."""
    flow_runs.clean_up(get_run_logger().warning)
    try:
        params, reports = load_params(project_root() / "params.yaml"), project_root() / REPORTS
        outcome = reproduce_all(params)
        publish_contracts(params, reports)
        if outcome.is_completed():
            publish_results(params, reports)
    except (CracksError, OSError) as error:
        return failed(error)
    return outcome


def reproduce_all(params: Params) -> State:
    """Bring every stage up to date, each as a task that waits for those it needs; call this inside a flow.

    Raises CracksError if DVC cannot read the stages.
    """
    graph = stages.read_graph()
    runner = stages.StageRunner(params.flow)
    futures: dict[str, PrefectFuture[State[bool]]] = {}
    try:
        for name in TopologicalSorter({name: stage.needs for name, stage in graph.items()}).static_order():
            needed = [futures[other] for other in graph[name].needs]
            stage = run_stage.with_options(name=name, **retries(params.flow, runner.ended))
            futures[name] = stage.submit(name, graph[name].has_changed, needed, runner, return_state=False)
        wait(list(futures.values()))
    finally:
        runner.end()
    return _outcome({name: future.state for name, future in futures.items()})


def _outcome(states: Mapping[str, State]) -> State:
    failed_states = [state for state in states.values() if state.is_final() and not state.is_completed()]
    failures = [str(state.message) for state in failed_states]
    if not failures:
        ran = sorted(name for name, state in states.items() if state.name != CACHED)
        message = f"{len(ran)} of {len(states)} stages ran: {', '.join(ran)}" if ran else "every stage was up to date"
        return Completed(message=message)
    if not_started := sorted(name for name, state in states.items() if not state.is_final()):
        failures.append(f"Not started: {', '.join(not_started)}.")
    code = min(map(exit_code, failed_states))  # where one stage failed for good, another try does not help
    return Failed(message="\n".join(failures), name=FAILURES.get(code))


def publish_contracts(params: Params, folder: Path) -> None:
    """Publish the validation result of each data set and of the split, as tables of the flow run."""
    for name in (*params.datasets, "split"):
        if (folder / f"validation-{name}.json").exists():
            report = run_summary.read_report(folder, f"validation-{name}.json")
            key = f"contract-{name.replace('_', '-')}"  # keys may contain only letters, digits and dashes
            verdict = "met" if report["success"] else "BROKEN"
            create_table_artifact(run_summary.contract_rows(report), key, f"The contract of {name}: {verdict}")


def publish_results(params: Params, folder: Path) -> None:
    """Publish the candidates, the scores of the chosen one, and links to its run and the report."""
    chosen = run_summary.read_report(folder, "scores.json")["candidate"]
    rows = run_summary.candidate_rows(folder, list(params.candidates), chosen)
    create_table_artifact(rows, "candidates", "Scores on validation; the lowest selection loss is chosen")
    create_markdown_artifact("\n\n".join(run_summary.summary_lines(folder)), "result", "Results of the run")
    registered = run_summary.read_report(folder, "registered.json")
    for name, address in run_summary.mlflow_addresses(registered).items():
        create_link_artifact(address, address, f"mlflow-{name}", f"The {name} in MLflow")


if __name__ == "__main__":
    flow_runs.run_once(training)
