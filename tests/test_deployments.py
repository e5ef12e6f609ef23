"""prefect.yaml: the flows as deployments of a work pool, on a real Prefect server with a worker."""

import shutil
from typing import Any

import httpx
import pytest
from conftest import ROOT, Project
from prefect.client.orchestration import SyncPrefectClient
from toy_project import diamond, toy_project

from flows.deployments import flows_and_schedules
from flows.flow_runs import our_deployments
from pipeline.params import load_params

pytestmark = pytest.mark.slow


def ask(api: str, what: str, **condition: object) -> Any:
    return httpx.post(f"{api}/{what}", json=condition, timeout=30).raise_for_status().json()


def prefect(project: Project, api: str, *arguments: str) -> str:
    env = {"PREFECT_API_URL": api, "CRACKS_WORK_POOL": "here", "PREFECT_HOME": str(project.root / "home")}
    finished = project.run("prefect", "--no-prompt", *arguments, **env)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def delete_deployments(api: str) -> None:
    for found in ask(api, "deployments/filter"):
        httpx.delete(f"{api}/deployments/{found['id']}", timeout=30).raise_for_status()


def test_a_worker_runs_what_prefect_deploy_made_of_prefect_yaml_on_the_schedules_of_params(prefect_api, tmp_path):
    project = toy_project(tmp_path / "project", diamond())
    shutil.copy(ROOT / "prefect.yaml", project.root)
    project.edit_params(lambda params: params["retrain"].update(cron="30 2 * * 1"))
    project.edit_params(lambda params: params["flow"].update(timezone="Europe/Berlin"))
    delete_deployments(prefect_api)  # of other tests; one that is deployed again keeps a schedule that it had
    prefect(project, prefect_api, "work-pool", "create", "here", "--type", "process")
    try:
        prefect(project, prefect_api, "deploy", "--all")
        deployed = ask(prefect_api, "deployments/filter", work_pools={"name": {"any_": ["here"]}})
        made = {
            found["name"]: [(each["schedule"]["cron"], each["schedule"]["timezone"]) for each in found["schedules"]]
            for found in deployed
        }
        served = flows_and_schedules(load_params(project.root / "params.yaml"))
        assert made == {flow.name: [(each.cron, each.timezone)] if each else [] for flow, each in served}
        assert made["retraining"] == [("30 2 * * 1", "Europe/Berlin")]

        flow_id = httpx.post(f"{prefect_api}/flows/", json={"name": "another"}).json()["id"]
        another = {"name": "another", "flow_id": flow_id, "entrypoint": "flows.another.flow"}
        httpx.post(f"{prefect_api}/deployments/", json=another).raise_for_status()
        with SyncPrefectClient(prefect_api) as client:
            assert {found.name for found in our_deployments(client)} == set(made)

        prefect(project, prefect_api, "deployment", "run", "training/training")
        printed = prefect(project, prefect_api, "worker", "start", "--pool", "here", "--run-once")
        runs = ask(prefect_api, "flow_runs/filter", work_pools={"name": {"any_": ["here"]}})
        states = {run["state_name"] for run in runs if not run["auto_scheduled"]}
        assert states == {"Completed"}, printed
        assert (project.root / "last").read_text() == "a\na\n"
    finally:
        prefect(project, prefect_api, "work-pool", "delete", "here")
        delete_deployments(prefect_api)
