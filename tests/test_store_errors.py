"""What is wrong with a tracking store, told apart: what a person mends (exit code 2), and what waiting mends (4)."""

import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, unused_port
from shared_server import postgres_in

from pipeline.errors import CracksError, UnavailableError
from pipeline.registry import bounded_requests, tracking
from pipeline.registry.versions import find_version


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, with no setting of the machine's own."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name, value in tracking.SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    return tmp_path


def connecting_fails(kind: type[CracksError]) -> str:
    """Return the message with which `connect` fails as exactly this kind of error."""
    with pytest.raises(CracksError) as caught:
        tracking.connect()
    assert type(caught.value) is kind, caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("localhost:5000", "did you mean http://localhost:5000?"),
        ("htttp://localhost:5000", "begins with none of http://"),
        ("http://", "has no host"),
        ("https:// host:5000", "has no host, or a blank in it"),
        ("sqlite:////nowhere/at/all.db", "names a database that does not exist; `mlflow db upgrade sqlite:////nowhere"),
        ("sqlite://", "names a database that does not exist"),
        ("file:///tmp/mlruns", "begins with none of"),
        ("mlruns", "begins with none of"),
        ("https//someone:secret@host", "begins with none of"),
    ],
)
def test_an_address_that_cannot_be_one_is_a_mistake(project: Path, monkeypatch: pytest.MonkeyPatch, uri, says) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    message = connecting_fails(CracksError)
    assert message.startswith("MLFLOW_TRACKING_URI is ")
    assert says in message
    assert "secret" not in message


def test_a_database_that_is_mistyped_is_not_created(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/typo.db")
    connecting_fails(CracksError)
    assert not (project / "typo.db").exists()


def test_a_blank_behind_the_address_does_not_matter(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " http://host:5000 \n")
    assert tracking.tracking_uri() == "http://host:5000"


def cut(database: Path) -> None:
    os.truncate(database, 5000)


def no_database(database: Path) -> None:
    database.write_bytes(b"hello" * 1000)


def newer(database: Path) -> None:
    with sqlite3.connect(database) as store:
        store.execute("update alembic_version set version_num = 'deadbeef'")


def older(database: Path) -> None:
    with sqlite3.connect(database) as store:
        store.execute("update alembic_version set version_num = '451aebb31d03'")


def without_experiment(database: Path) -> None:
    tracking.connect()
    with sqlite3.connect(database) as store:
        store.execute("update experiments set lifecycle_stage = 'deleted' where name = 'cracks'")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "is damaged: (sqlite3.DatabaseError) database disk image is malformed. Restore its database"),
        (no_database, "is damaged: (sqlite3.DatabaseError) file is not a database. Restore its database"),
        (newer, "was written by a newer MLflow (its tables have version deadbeef"),
        (older, "was written by an older MLflow (its tables have version 451aebb31d03"),
        (without_experiment, "mlflow experiments restore --experiment-id 1"),
    ],
)
def test_a_database_that_cannot_be_used_says_why_and_what_helps(
    project: Path, empty_store: Path, damage: Callable[[Path], None], says: str
) -> None:
    database = shutil.copy(empty_store, project / "mlflow" / "mlflow.db")
    damage(database)
    assert says in connecting_fails(CracksError)


@pytest.mark.parametrize("transaction", ["begin exclusive", "begin immediate"])
def test_a_database_that_another_program_keeps_locked_is_an_outage_in_words(
    project: Path, empty_store: Path, transaction: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = shutil.copy(empty_store, project / "mlflow" / "mlflow.db")
    with sqlite3.connect(database, isolation_level=None) as holder:
        holder.execute(transaction)
        assert "database is locked" in connecting_fails(UnavailableError)
    holder.close()
    assert caplog.text == ""  # no traceback of MLflow's


def test_a_database_that_is_away_is_given_up_within_seconds(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://someone:secret@127.0.0.1:{unused_port()}/mlflow")
    started_s = time.monotonic()
    message = connecting_fails(UnavailableError)
    assert "Connection refused" in message
    assert "secret" not in message
    assert time.monotonic() - started_s < 30  # MLflow alone tries for 100 s


@pytest.mark.slow
def test_a_database_that_is_there_and_refuses_is_a_mistake(
    project: Path, monkeypatch: pytest.MonkeyPatch, database_folder: Path
) -> None:
    postgres = postgres_in(database_folder)
    try:
        folder = postgres.get_postmaster_info().socket_dir
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql:///typo?host={folder}&user=postgres")
        assert 'database "typo" does not exist' in connecting_fails(CracksError)
    finally:
        postgres.cleanup()


class Server:
    """A server that gives one answer, by default at once."""

    def __init__(self) -> None:
        self.status, self.body, self.pause_s = 200, b"{}", 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                for byte in outer.body:
                    if outer.pause_s:
                        self.wfile.flush()
                        time.sleep(outer.pause_s)
                    self.wfile.write(bytes([byte]))

            do_POST = do_GET  # noqa: N815 - the name that http.server looks up

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{made.http.server_port}")
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (200, b"{}", CracksError, "is no MLflow server"),
        (200, b'{"experiment": {}}', CracksError, "is no MLflow server"),
        (200, b"<html>", CracksError, "is no MLflow server"),
        (404, b"not found", CracksError, "is no MLflow server"),
        (400, b"bad", CracksError, "refuses the request"),
        (401, b"no", CracksError, "does not let you in. Set MLFLOW_TRACKING_USERNAME"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', CracksError, "refuses the request: PERMISSION"),
        (429, b"slower", UnavailableError, "does not answer"),
        (500, b"broken", UnavailableError, "does not answer"),
        (503, b"away", UnavailableError, "does not answer"),
    ],
)
def test_an_answer_is_a_mistake_or_an_outage(server: Server, status: int, body: bytes, kind, says: str) -> None:
    server.status, server.body = status, body
    assert says in connecting_fails(kind)


def test_no_answer_that_is_used_may_be_empty(server: Server) -> None:
    client = tracking.open_client()
    with pytest.raises(CracksError, match="is no answer of MLflow to registered-models/alias"):
        find_version(client, "cracks", "production")
    with pytest.raises(CracksError, match="is no answer of MLflow to model-versions/get"):
        find_version(client, "cracks", "1")


def test_a_server_that_answers_a_byte_at_a_time_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.body, server.pause_s = b" " * 1000, 0.2
    monkeypatch.setattr(bounded_requests, "REQUEST_S", 1)
    started_s = time.monotonic()
    assert "no complete answer within 1 s" in connecting_fails(UnavailableError)
    assert time.monotonic() - started_s < 30


def test_a_file_where_the_folder_of_the_store_should_be_is_a_mistake(project: Path) -> None:
    shutil.rmtree(project / "mlflow")
    (project / "mlflow").write_text("a file")
    connecting_fails(CracksError)


@pytest.mark.parametrize(
    ("keys", "exit_code"),
    [({}, 2), ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, 4)],
    ids=["no keys", "away"],
)
def test_a_store_is_not_moved_to_a_bucket_that_cannot_be_used_and_the_reason_is_said(
    project: Path, empty_store: Path, keys: dict[str, str], exit_code: int
) -> None:
    shutil.copy(empty_store, project / "mlflow" / "mlflow.db")
    shutil.copy(empty_store, project / "target.db")
    tracking.connect()
    (project / "mlflow" / "artifacts").mkdir()
    (project / "mlflow" / "artifacts" / "file").write_text("a file")
    where = ("--backend-store-uri", f"sqlite:///{project}/target.db", "--artifacts-destination", "s3://bucket")
    aws = {"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    moved = subprocess.run(
        [sys.executable, ROOT / "pipeline/registry/move_store.py", project / "mlflow", *where],
        env={**os.environ, "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", **aws, **keys},
        capture_output=True,
        text=True,
        check=False,
    )
    assert moved.returncode == exit_code, moved.stderr
    assert "The database is as it was" in moved.stderr
    assert "Traceback" not in moved.stderr
    with sqlite3.connect(project / "target.db") as target:
        assert target.execute("select count(*) from experiments where name = 'cracks'").fetchone() == (0,)
