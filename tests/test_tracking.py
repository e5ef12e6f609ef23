import logging
import math
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from conftest import wait_until

from pipeline.errors import CracksError, UnavailableError
from pipeline.params import load_params
from pipeline.registry import runs, tracking

GIT = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
PARAMS = load_params(Path(__file__).parent.parent / "params.yaml")
CANDIDATE = "probe-lite0"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder which is DVC's root, with no setting of the machine's own."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "manifest.parquet").write_bytes(b"one split")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets itself; as good as unset
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("DVC_EXP_BASELINE_REV", "GIT_COMMIT", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in tracking.SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return tmp_path


@pytest.fixture
def store(project, empty_store):
    """The store of the project: a client and the id of the experiment."""
    (project / "mlflow").mkdir()
    shutil.copy(empty_store, project / "mlflow" / "mlflow.db")
    client, experiment_id = tracking.connect()
    return SimpleNamespace(client=client, experiment_id=experiment_id, manifest=project / "manifest.parquet")


@pytest.fixture
def unused_address():
    """An address on this machine where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def children(store):
    parent_id = runs.parent_run(store.client, store.experiment_id, PARAMS, store.manifest)
    return runs.child_runs(store.client, store.experiment_id, parent_id, CANDIDATE)


def curve(store, run, name="val_loss"):
    history = store.client.get_metric_history(run.info.run_id, name)
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)]


def test_the_store_is_in_the_folder_of_dvc_wherever_the_stage_runs(project, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert tracking.tracking_uri() == f"sqlite:///{project}/mlflow/mlflow.db"


def test_the_address_of_a_server_wins_over_the_project(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert tracking.tracking_uri() == "http://tracking.example:5000"


def test_the_experiment_is_made_once_and_keeps_its_artifacts_in_the_project(store, project):
    assert tracking.connect()[1] == store.experiment_id
    experiment = store.client.get_experiment_by_name("cracks")
    assert experiment.artifact_location == (project / "mlflow" / "artifacts").as_uri()


def test_a_server_that_is_away_is_named_with_what_to_do(project, monkeypatch, unused_address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_address)
    with pytest.raises(UnavailableError, match=rf"{unused_address} does not answer: .*MLFLOW_TRACKING_URI"):
        tracking.connect()


def test_a_parent_is_the_same_for_the_same_params_and_split(store):
    def parent(params=PARAMS):
        return runs.parent_run(store.client, store.experiment_id, params, store.manifest)

    first = parent()
    assert parent() == first
    other = parent(PARAMS.model_copy(update={"decide": PARAMS.decide.model_copy(update={"missed_crack_cost": 9})}))
    store.manifest.write_bytes(b"another split")
    assert len({first, other, parent()}) == 3
    run = store.client.get_run(first)
    assert (run.info.run_name, run.data.tags["cracks.demo"]) == ("demo (demo)", "true")


def test_a_candidate_runs_under_its_parent_with_its_params(store):
    with runs.live_run(PARAMS, store.manifest, CANDIDATE):
        (run,) = children(store)
        assert run.info.status == "RUNNING"
    (run,) = children(store)
    assert (run.info.run_name, run.info.status) == (CANDIDATE, "FINISHED")
    assert run.data.params["kind"] == "probe"
    assert run.data.params["backbone.architecture"] == "efficientnet-lite0"


def test_epochs_are_sent_while_training_runs_without_what_is_no_number(store):
    with runs.live_run(PARAMS, store.manifest, CANDIDATE) as report:
        report(0, {"loss": 2.0, "val_loss": 3.0})
        mlflow.flush_async_logging()
        (run,) = children(store)
        assert curve(store, run) == [(0, 3.0)]
        report(1, {"loss": math.nan, "val_loss": 1.0})
    assert curve(store, run) == [(0, 3.0), (1, 1.0)]
    assert curve(store, run, "loss") == [(0, 2.0)]


def test_a_training_that_fails_leaves_a_failed_run_and_its_own_error(store):
    with (
        pytest.raises(ZeroDivisionError, match="of the training"),
        runs.live_run(PARAMS, store.manifest, CANDIDATE),
    ):
        raise ZeroDivisionError("of the training")
    assert [run.info.status for run in children(store)] == ["FAILED"]


def test_a_run_that_a_killed_process_left_running_is_set_killed(store):
    parent_id = runs.parent_run(store.client, store.experiment_id, PARAMS, store.manifest)
    for candidate in (CANDIDATE, "finetune-mobilenet"):
        runs.create_child(store.client, store.experiment_id, parent_id, PARAMS, candidate)
    with runs.live_run(PARAMS, store.manifest, CANDIDATE):
        assert sorted(run.info.status for run in children(store)) == ["KILLED", "RUNNING"]
    (other,) = runs.child_runs(store.client, store.experiment_id, parent_id, "finetune-mobilenet")
    assert other.info.status == "RUNNING"


def test_more_values_than_a_request_may_have_are_sent_in_several(store):
    parent_id = runs.parent_run(store.client, store.experiment_id, PARAMS, store.manifest)
    rows = [{"step": step, "phase": "head", "epoch": step, "val_loss": float(step)} for step in range(1001)]
    runs.log_epochs(store.client, parent_id, rows)
    run = store.client.get_run(parent_id)
    assert curve(store, run) == [(step, step) for step in range(1001)]
    assert set(run.data.metrics) == {"val_loss"}


def test_training_goes_on_without_a_server(project, monkeypatch, unused_address, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_address)
    with (
        caplog.at_level(logging.WARNING, "pipeline.registry.runs"),
        runs.live_run(PARAMS, project / "manifest.parquet", CANDIDATE) as report,
    ):
        report(0, {"loss": 1.0})
    (record,) = caplog.records
    assert f"does not have all of {CANDIDATE} yet, `register` sends the rest: The tracking store" in record.message


def test_a_mistake_with_the_store_ends_a_training_before_it_begins(store):
    store.client.delete_experiment(store.experiment_id)
    with (
        pytest.raises(CracksError, match=r"experiment 'cracks' was deleted .* mlflow experiments restore"),
        runs.live_run(PARAMS, store.manifest, CANDIDATE),
    ):
        pytest.fail("the training began")


@pytest.fixture
def server(project, empty_store, monkeypatch):
    """A tracking server in a thread, which can be stopped and started again at its address."""
    from mlflow.server import app, handlers
    from werkzeug.serving import make_server

    database = project / "server.db"
    shutil.copy(empty_store, database)
    for name in ("_tracking_store", "_model_registry_store"):
        monkeypatch.setattr(handlers, name, None)
    handlers.initialize_backend_stores(f"sqlite:///{database}", default_artifact_root=(project / "artifacts").as_uri())
    running = []

    def start(port=0):
        serving = make_server("127.0.0.1", port, app, threaded=True)
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        running.append((serving, thread))
        return serving.server_port

    def stop():
        serving, thread = running.pop()
        serving.shutdown()
        serving.server_close()
        thread.join()

    port = start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    yield SimpleNamespace(stop=stop, start=lambda: start(port))
    while running:
        stop()
    for thread in threading.enumerate():
        if thread.name == "SystemMetricsMonitor":  # left by MLflow if a run cannot be ended; it logs an error
            thread.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")  # imported by MLflow's server
def test_training_goes_on_when_the_server_dies_and_does_not_wait_for_it(server, project, caplog):
    with runs.live_run(PARAMS, project / "manifest.parquet", CANDIDATE) as report:
        server.stop()
        started_s = time.monotonic()
        for step in range(500):
            report(step, {"loss": 3.0})
        took_s = time.monotonic() - started_s
    assert took_s < 60  # to wait for the server would take seconds for each of the 500
    warnings = [record.message for record in caplog.records if record.name == "pipeline.registry.runs"]
    assert len(warnings) == 1  # of the end of the run
    assert f"does not have all of {CANDIDATE} yet" in warnings[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")  # imported by MLflow's server
def test_live_curves_go_on_when_the_server_is_back(server, project):
    with runs.live_run(PARAMS, project / "manifest.parquet", CANDIDATE) as report:
        server.stop()
        report(0, {"val_loss": 3.0})
        mlflow.flush_async_logging()
        server.start()
        report(1, {"val_loss": 1.0})
    client, experiment_id = tracking.connect()
    [run] = client.search_runs([experiment_id], f"tags.`{runs.CANDIDATE_TAG}` = '{CANDIDATE}'")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "val_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0)]


def test_system_metrics_are_beside_the_curves(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with runs.live_run(PARAMS, store.manifest, CANDIDATE):
        (run,) = children(store)
        wait_until(lambda: curve(store, run, "system/cpu_utilization_percentage"))


@pytest.fixture
def repository(project):
    """The project under git, with two files of code, params.yaml, dvc.lock, the settings of DVC and a data set's."""
    (project / "data").mkdir()
    for name in ("params.yaml", "dvc.lock", "code.py", "Makefile", ".dvc/config", "data/batches.json"):
        (project / name).write_text("as committed")
    (project / ".gitignore").write_text("/manifest.parquet\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*GIT, "-C", str(project), *arguments], check=True)
    return project


def test_the_commit_is_known_and_what_a_version_carries_with_it_does_not_make_it_dirty(repository):
    (repository / "reports").mkdir()
    changed = ("params.yaml", "dvc.lock", "reports/registered.json", ".dvc/config", "data/batches.json")
    for name in (*changed, "data/site.dvc", "site.dvc", "predictions.csv"):
        (repository / name).write_text("changed")
    commit = subprocess.run([*GIT, "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert runs.code_version() == {"mlflow.source.git.commit": commit.strip(), "cracks.dirty": "false"}


@pytest.mark.parametrize("name", ["code.py", "new.py", "Makefile", "pipeline/new part.py"])
def test_code_that_differs_from_the_commit_makes_it_dirty_and_is_named(repository, name):
    (repository / "pipeline").mkdir()
    (repository / name).write_text("changed")
    assert runs.code_version()["cracks.dirty"] == "true"
    assert runs.code_version()["cracks.changed_files"] == name


def test_of_many_changed_files_the_first_are_named(repository):
    for number in range(6):
        (repository / f"{number}.py").write_text("new")
    assert runs.code_version()["cracks.changed_files"] == "0.py, 1.py, 2.py, 3.py, 4.py, ..."


def test_code_that_is_staged_or_deleted_differs_from_the_commit(repository):
    (repository / "Makefile").unlink()
    (repository / "code.py").write_text("changed")
    subprocess.run([*GIT, "-C", str(repository), "add", "."], check=True)
    assert runs.code_version()["cracks.changed_files"] == "Makefile, code.py"


def test_without_git_the_commit_is_what_the_environment_says(project, monkeypatch):
    assert runs.code_version() == {"mlflow.source.git.commit": "unknown", "cracks.dirty": "unknown"}
    monkeypatch.setenv("GIT_COMMIT", "abc123")
    assert runs.code_version()["mlflow.source.git.commit"] == "abc123"
    monkeypatch.setenv("PATH", "")
    assert runs.code_version()["mlflow.source.git.commit"] == "abc123"


def test_more_params_than_a_request_takes_all_arrive(store):
    run_id = store.client.create_run(store.experiment_id).info.run_id
    values = {f"p{n}": n for n in range(101)}
    runs.log_params(store.client, run_id, {"many": values, "one": None})
    logged = store.client.get_run(run_id).data.params
    assert logged == {f"many.{name}": str(value) for name, value in values.items()} | {"one": "None"}


@pytest.mark.parametrize("account", ["someone:secret@", "someone:p@ss@", ""])
def test_a_password_in_the_address_is_not_shown(project, monkeypatch, account):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{account}tracking.example:5000")
    assert tracking.shown_uri() == "https://tracking.example:5000"


def test_a_password_in_the_address_is_not_in_the_error_either(project, monkeypatch, unused_address):
    host = unused_address.removeprefix("http://")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@{host}")
    with pytest.raises(UnavailableError, match=f"API request to http://{host}/api") as raised:
        tracking.connect()
    assert "secret" not in str(raised.value)


def test_nested_values_are_named_by_their_path():
    assert runs.flatten({"a": 1, "b": {"c": None, "d": {"e": "f"}}}) == {"a": 1, "b.c": None, "b.d.e": "f"}


@pytest.mark.parametrize(
    ("error", "line"), [(ValueError("first\nsecond"), "first"), (ValueError(), "ValueError")], ids=["long", "empty"]
)
def test_of_an_error_the_first_line_is_shown(error, line):
    assert tracking.first_line(error) == line
