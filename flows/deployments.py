"""The flows as deployments of Prefect, with the schedules of params.yaml."""

from typing import Any

from prefect import Flow
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Schedule
from prefect.types.entrypoint import EntrypointType

from flows.monitoring import monitoring
from flows.promotion import promotion, rollback
from flows.retraining import retraining
from flows.services import TAG
from flows.training import training
from pipeline.params import Params, load_params
from pipeline.project import project_root


def flows_and_schedules(params: Params) -> list[tuple[Flow[..., Any], Schedule | None]]:
    """Return every flow with its schedule; None: only on demand."""
    return [
        (training, None),
        (retraining, Cron(params.retrain.cron, timezone=params.flow.timezone)),
        (monitoring, Cron(params.monitor.cron, timezone=params.flow.timezone)),
        (promotion, None),
        (rollback, None),
    ]


def deployments(params: Params) -> list[RunnerDeployment]:
    """Return a deployment for each flow, with the name of the flow, to be served without a work pool."""
    return [
        RunnerDeployment.from_flow(
            flow, flow.name, schedule=schedule, tags=[TAG], entrypoint_type=EntrypointType.MODULE_PATH
        )
        for flow, schedule in flows_and_schedules(params)
    ]


def params_values() -> dict[str, str]:
    """Return what prefect.yaml takes from params.yaml, and the project's folder; a step of `prefect deploy`."""
    root = project_root()
    params = load_params(root / "params.yaml")
    return {
        "root": str(root),
        "timezone": params.flow.timezone,
        "retrain_cron": params.retrain.cron,
        "monitor_cron": params.monitor.cron,
    }
