"""The shared server lets in whom it should, keeps what is registered, and loses nothing when a service is lost."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Project
from shared_server import Shared, fetched, interrupted, run_as, status

from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE

pytestmark = pytest.mark.slow(12)


def test_nobody_gets_in_without_a_password_or_under_another_name(shared: Shared) -> None:
    experiment = f"{shared.mlflow_url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(experiment) == 401
    assert status(experiment, "worker", "guessed") == 401
    assert status(experiment, "worker", "of-the-worker") == 200
    assert status(experiment, "worker", "of-the-worker", host="rebound.example") == 403


@pytest.mark.parametrize("account", ["worker", "api"])
def test_nobody_is_refused_for_asking_after_a_model_that_is_not_registered_yet(shared: Shared, account: str) -> None:
    code = (
        "from mlflow import MlflowClient; from pipeline.registry.versions import find_version as find; "
        "print([find(MlflowClient(), 'not yet', wanted) for wanted in ('production', '1')])"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **shared.client(account)}
    asked = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert asked.stdout == "[None, None]\n", asked.stderr


def test_the_services_that_run_once_can_run_again_and_bring_new_passwords(shared: Shared) -> None:
    account = f"{shared.mlflow_url}/api/2.0/mlflow/users/get?username=api"
    shared.run("buckets")
    changed = "of-the-readers-from-now-on"
    shared.settings["MLFLOW_API_PASSWORD"] = changed
    shared.run("accounts")
    assert status(account, "api", "of-the-readers") == 401
    assert status(account, "api", changed) == 200


def test_a_model_is_registered_through_the_server_and_read_without_keys_of_the_store(
    shared: Shared, registered: Project, tmp_path: Path
) -> None:
    assert shared.versions("cracks") == [("1", "challenger")]
    assert registered.run("cracks", "registered", **shared.client("worker")).returncode == 0
    assert fetched(shared, "cracks", "challenger", tmp_path / "model").golden_difference() < MAX_GOLDEN_DIFFERENCE


def test_the_account_of_the_api_moves_no_alias(shared: Shared, registered: Project) -> None:
    code = "import mlflow; mlflow.MlflowClient().set_registered_model_alias('cracks', 'production', '1')"
    refused = registered.run(sys.executable, "-c", code, **shared.client("api"))
    assert "Permission denied" in refused.stderr
    assert shared.versions("cracks") == [("1", "challenger")]


def test_who_forgot_the_password_is_told_so(shared: Shared, registered: Project) -> None:
    env = shared.client("worker") | {"MLFLOW_TRACKING_PASSWORD": "forgotten"}
    told = registered.run("cracks", "registered", **env)
    assert told.returncode == 2
    assert "does not let you in. Set MLFLOW_TRACKING_USERNAME" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_fresh_clone_pulls_the_data_and_has_nothing_to_do(
    shared: Shared, registered: Project, tmp_path: Path
) -> None:
    env = shared.client("worker")
    for command in (
        "dvc remote add --default shared s3://dvc/cracks",
        "git add --all",
        "git commit --quiet --message=trained",
        "dvc push",
    ):
        done = registered.run(*command.split(), **env)
        assert done.returncode == 0, done.stderr
    subprocess.run(["git", "clone", "--quiet", registered.root, tmp_path / "clone"], check=True)
    clone = Project(tmp_path / "clone")
    pulled = clone.run("dvc", "pull", **env)
    assert pulled.returncode == 0, pulled.stdout + pulled.stderr
    assert "Running stage" not in clone.repro(**env)
    assert clone.run("cracks", "registered", **env).returncode == 0
    assert clone.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.parametrize("lost", ["postgres", pytest.param("store", marks=pytest.mark.soak)])
def test_a_service_lost_in_the_middle_of_register_loses_nothing(
    shared: Shared, registered: Project, project: Project, tmp_path: Path, lost: str
) -> None:
    """The moment: MLflow knows of a model whose files are on their way."""
    n_models = "select count(*) from logged_models"
    before, name, env = shared.rows("mlflow", n_models), f"lost-{lost}", shared.client("worker")
    project.edit_params(lambda params: params["register"].update(name=name))
    stop, start = shared.outage(lost)
    ended = interrupted(project, ("dvc", "repro"), env, lambda: shared.rows("mlflow", n_models) != before, stop)
    printed = ended.stdout + ended.stderr
    start()
    assert ended.returncode != 0
    assert "Nothing is lost: once it works again, run `dvc repro`" in printed
    assert "Traceback" not in printed
    assert shared.versions(name) == []

    again = project.repro(**env)
    assert again.count("Running stage") == 1
    assert shared.versions(name) == [("1", "challenger")]
    assert project.json("reports/registered.json")["name"] == name
    assert fetched(shared, name, "challenger", tmp_path / "model").golden_difference() < MAX_GOLDEN_DIFFERENCE
    assert fetched(shared, "cracks", "challenger", tmp_path / "first").golden_difference() < MAX_GOLDEN_DIFFERENCE


@pytest.fixture
def database_of_prefect(shared: Shared, database_folder: Path) -> Iterator[None]:
    """Give Prefect a PostgreSQL of the system's, which has the extension pg_trgm; that of the package lacks it."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None:
        pytest.skip("Prefect needs the extension pg_trgm: apt-get install postgresql")
    data, user = database_folder / "prefect", shared.postgres.system_user
    data.mkdir()
    if user:
        shutil.chown(data, user)
    run_as(user, binaries / "initdb", "--auth=trust", "-U", "cracks", "-D", data)
    run_as(user, binaries / "pg_ctl", "-w", "-o", f"-h '' -k {data}", "-l", data / "log", "-D", data, "start")
    try:
        run_as(user, binaries / "createdb", "-h", data, "-U", "cracks", "prefect")
        shared.sockets["prefect"] = data
        yield
    finally:
        run_as(user, binaries / "pg_ctl", "-w", "-m", "immediate", "-D", data, "stop")


def test_prefect_keeps_its_runs_in_postgres_behind_a_password(shared: Shared, database_of_prefect: None) -> None:
    shared.serve("prefect", f"{shared.prefect_url}/health")
    version = f"{shared.prefect_url}/admin/version"
    assert (status(version), status(version, "prefect", "of-prefect")) == (401, 200)
    assert shared.rows("prefect", "select count(*) from flow_run") == [(0,)]
