"""prefect.yaml: the flows as deployments of a work pool, on a real Prefect server with a worker."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project
from prefect.client.orchestration import SyncPrefectClient
from toy_project import diamond, toy_project

from flows.deployments import flows_and_schedules
from flows.flow_runs import our_deployments
from pipeline.params import load_params

pytestmark = pytest.mark.slow(25)


def ask(client: SyncPrefectClient, what: str, **condition: object) -> Any:
    """Return an answer of the server; the client asks again where its SQLite was locked."""
    return client.request("POST", f"/{what}", json=condition).json()


def prefect(project: Project, api: str, *arguments: str) -> str:
    """Run prefect by its path, as systemd starts a worker: no environment is activated."""
    env = {"PREFECT_API_URL": api, "CRACKS_WORK_POOL": "here", "PREFECT_HOME": str(project.root / "home")}
    env["PATH"] = "/usr/bin:/bin"
    finished = project.run(str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments, **env)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    """Yield a client of a server without deployments; one that is deployed again keeps a schedule that it had."""
    with SyncPrefectClient(prefect_api) as client:
        delete_deployments(client)
        yield client
        delete_deployments(client)


def delete_deployments(client: SyncPrefectClient) -> None:
    for found in ask(client, "deployments/filter"):
        client.request("DELETE", f"/deployments/{found['id']}")


def test_a_worker_runs_what_prefect_deploy_made_of_prefect_yaml_on_schedules_of_params(client, prefect_api, tmp_path):
    project = toy_project(tmp_path / "project", diamond())
    shutil.copy(ROOT / "prefect.yaml", project.root)
    project.edit_params(lambda params: params["retrain"].update(cron="30 2 * * 1"))
    project.edit_params(lambda params: params["flow"].update(timezone="Europe/Berlin"))
    prefect(project, prefect_api, "work-pool", "create", "here", "--type", "process")
    try:
        prefect(project, prefect_api, "deploy", "--all")
        deployed = ask(client, "deployments/filter", work_pools={"name": {"any_": ["here"]}})
        made = {
            found["name"]: [(each["schedule"]["cron"], each["schedule"]["timezone"]) for each in found["schedules"]]
            for found in deployed
        }
        served = flows_and_schedules(load_params(project.root / "params.yaml"))
        assert made == {flow.name: [(each.cron, each.timezone)] if each else [] for flow, each in served}
        assert made["retraining"] == [("30 2 * * 1", "Europe/Berlin")]

        flow_id = ask(client, "flows/", name="another")["id"]
        ask(client, "deployments/", name="another", flow_id=flow_id, entrypoint="flows.another.flow")
        assert {found.name for found in our_deployments(client)} == set(made)

        prefect(project, prefect_api, "deployment", "run", "training/training")
        printed = prefect(project, prefect_api, "worker", "start", "--pool", "here", "--run-once")
        runs = ask(client, "flow_runs/filter", work_pools={"name": {"any_": ["here"]}})
        states = {run["state_name"] for run in runs if not run["auto_scheduled"]}
        assert states == {"Completed"}, printed
        assert (project.root / "last").read_text() == "a\na\n"
    finally:
        prefect(project, prefect_api, "work-pool", "delete", "here")
