"""What `python -m flows` serves."""

import importlib
import pkgutil
from pathlib import Path

from prefect import Flow

import flows
from flows import runs
from flows.__main__ import deployments, flows_and_schedules
from pipeline.params import load_params

PARAMS = load_params(Path(__file__).parents[1] / "params.yaml")


def every_flow():
    """All flows of the package, by name."""
    modules = [importlib.import_module(f"flows.{module.name}") for module in pkgutil.iter_modules(flows.__path__)]
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Flow)}


def test_every_flow_is_served_and_those_that_nobody_starts_have_a_schedule():
    served = {flow.name: schedule for flow, schedule in flows_and_schedules(PARAMS)}
    assert set(served) == set(every_flow())
    crons = {name: schedule.cron for name, schedule in served.items() if schedule is not None}
    assert crons == {"retraining": PARAMS.retrain.cron, "monitoring": PARAMS.monitor.cron}
    assert {deployment.name for deployment in deployments(PARAMS)} == set(served)


def test_of_every_flow_the_process_is_written_down_that_works_on_it():
    for name, flow in every_flow().items():
        assert runs.record_holder in flow.on_running_hooks, name
