"""Promotions on the shared server reach who serves, survive a lost service, and move there from one machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, unused_port
from mlflow import MlflowClient
from shared_server import Shared, fetched, interrupted, status, until

from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE, ServedModel

pytestmark = pytest.mark.slow(40)

LENIENT = {
    "approval": "automatic",
    "floors": {"f1": 0, "recall": 0},
    "max_ece": 1,
    "min_slice_recall": 0,
    "min_groups": 4,
    "margins": {"test": 1, "slice": 1, "external": 1},
    "budgets": {"p95_ms": 60000, "resident_mb": 4000, "size_mb": 1000},
}


def named(project: Project, name: str) -> None:
    """Give the model of a project a name of its own, and rules that the few images of the tests can meet."""
    project.edit_params(lambda params: params["register"].update(name=name))
    project.edit_params(lambda params: params["promote"].update(LENIENT))


def register_another(shared: Shared, project: Project) -> None:
    """Register the model once more as another one: with another threshold."""
    for path in project.root.glob("models/*/decision.json"):
        decision = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()  # a link into DVC's cache
        path.write_text(json.dumps(decision | {"threshold": decision["threshold"] - 1e-3}), encoding="utf-8")
    project.repro("--single-item", "--force", "register", **shared.client("worker"))


def decisions(shared: Shared, project: Project) -> list[tuple[str, str]]:
    """Return (outcome, version) of every decision, newest first, as the command prints them."""
    printed = project.run("cracks", "history", "--json", **shared.client("worker"))
    return [(record["outcome"], record["version"]) for record in json.loads(printed.stdout)]


@pytest.mark.slow(100)
def test_a_promotion_and_its_rollback_reach_who_serves(shared: Shared, project: Project, tmp_path: Path) -> None:
    env = shared.client("worker")
    named(project, "promoted")
    project.repro(**env)
    register_another(shared, project)
    for version in ("1", "2"):
        promoted = project.run("cracks", "promote", version, "--demo", **env)
        assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    newer = fetched(shared, "promoted", "production", tmp_path / "newer")
    assert project.run("cracks", "rollback", "--reason", "false alarms", **env).returncode == 0
    older = fetched(shared, "promoted", "production", tmp_path / "older")
    assert older.decision.threshold == pytest.approx(newer.decision.threshold + 1e-3)
    assert decisions(shared, project) == [("rolled back", "1"), ("promoted", "2"), ("promoted", "1")]


@pytest.mark.soak
@pytest.mark.parametrize("lost", ["postgres", "store"])
def test_a_service_lost_in_the_middle_of_promote_leaves_alias_and_history_in_agreement(
    shared: Shared, project: Project, lost: str
) -> None:
    """The moment: the decision is being written down."""
    n_decisions = "select count(*) from runs r join experiments e using (experiment_id) where e.name = %s"
    name, env = f"promote-lost-{lost}", shared.client("worker")
    named(project, name)
    project.repro(**env)
    before = shared.rows("mlflow", n_decisions, f"{name}-decisions")
    stop, start = shared.outage(lost)
    ended = interrupted(
        project,
        ("cracks", "promote", "--demo"),
        env,
        lambda: shared.rows("mlflow", n_decisions, f"{name}-decisions") != before,
        stop,
    )
    start()
    assert ended.returncode == 4, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr

    again = project.run("cracks", "promote", "--demo", **env)
    assert again.returncode == 0 or "is in production already" in again.stderr
    assert ("1", "production") in shared.versions(name)
    assert [decision for decision in decisions(shared, project) if decision[0] == "promoted"] == [("promoted", "1")]


def content_of_store(uri: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the runs and the versions in a store, without where their files lie."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    versions = [client.get_model_version(found.name, found.version) for found in client.search_model_versions()]
    return (
        {run.info.run_id: (run.info.start_time, run.info.status, run.data.to_dictionary()) for run in runs},
        {
            str(found.version): (sorted(found.aliases), found.tags, found.run_id, found.creation_timestamp)
            for found in versions
        },
    )


def test_a_store_moves_to_a_server_and_goes_on_there(shared: Shared, project: Project, tmp_path: Path) -> None:
    project.edit_params(lambda params: params["promote"].update(LENIENT))
    promoted = project.run("cracks", "promote", "1", "--demo")
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    shared.postgres.psql("create database moved owner cracks")
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    env = shared.environment("mlflow") | {"MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}"}
    where = ("--backend-store-uri", "postgresql:///moved", "--artifacts-destination", "s3://moved")
    code = "import boto3; boto3.client('s3').create_bucket(Bucket='moved')"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    command = ["mlflow", "server", "--port", str(port), "--workers", "1", *where]
    with (tmp_path / "moved.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: status(f"{url}/health") == 200 or server.poll() is not None, "the new server answers")
        copy = [sys.executable, ROOT / "pipeline/registry/move_store.py", project.root / "mlflow", *where]
        subprocess.run(copy, env=env, cwd=tmp_path, check=True)
        again = subprocess.run(copy, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (again.returncode, "the target has runs already" in again.stderr) == (2, True)
        shutil.rmtree(project.root / "mlflow" / "artifacts")

        assert content_of_store(url) == content_of_store(f"sqlite:///{project.root}/mlflow/mlflow.db")
        history = project.run("cracks", "history", "--json", MLFLOW_TRACKING_URI=url)
        assert [record["outcome"] for record in json.loads(history.stdout)] == ["promoted"]
        client = MlflowClient(tracking_uri=url, registry_uri=url)
        code = "import sys; from mlflow.artifacts import download_artifacts as d; d(sys.argv[1], dst_path=sys.argv[2])"
        wanted = ("models:/cracks@production", str(tmp_path / "model"))
        (tmp_path / "model").mkdir()
        loaded = project.run(sys.executable, "-c", code, *wanted, MLFLOW_TRACKING_URI=url)
        assert loaded.returncode == 0, loaded.stderr
        assert ServedModel.load(tmp_path / "model").golden_difference() < MAX_GOLDEN_DIFFERENCE
        locations = {found.experiment_id: found.artifact_location for found in client.search_experiments()}
        # The project was copied to another folder before its first decision; since then 1 is in the folder of 2.
        assert locations == {"0": "mlflow-artifacts:/0", "1": "mlflow-artifacts:/", "2": "mlflow-artifacts:/"}
        assert client.create_experiment("next") not in locations
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
