"""Retraining by itself, with the real tools: from an archive in the inbox to production, and nothing twice."""

import contextlib
import logging
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import yaml
from conftest import QUICK_POLL, ROOT, Project, copy_of, unused_port, wait_until
from drawn_data import drawn_files
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient
from webhook import webhook

from flows.flow_runs import our_deployments
from pipeline.data.images import Pixels

pytestmark = pytest.mark.slow(40)
log = logging.getLogger(__name__)

SITE = "data/incoming/site"
N_IMAGES = 60  # of the batch
N_FIRST = 340
N_KILLS, SEED = int(os.environ.get("CRACKS_KILLS", "1")), 20260501
PATIENCE_S = 400
RETRAIN = (sys.executable, "-m", "flows.retraining")
NIGHTLY, EVERY_MINUTE = '"0 3 * * *"', '"* * * * *"'


@dataclass(frozen=True)
class Documented:
    """What docs/retraining.md tells a person to do, in the order in which it does."""

    first_archive: str
    settings: str  # of params.yaml
    serve: list[str]
    batch: str


def documented() -> Documented:
    """Return the blocks of commands and settings of the document's setup."""
    text = (ROOT / "docs" / "retraining.md").read_text(encoding="utf-8")
    setup = text.split("## Set up\n")[1].split("\n## ")[0]
    first, settings, serve, batch = map(textwrap.dedent, re.findall(r"(?:(?<=\n\n)|(?<=\n))(?: {4}.*\n)+", setup))
    return Documented(first, settings, serve.splitlines(), batch)


def write_archive(path: Path, n: int, seed: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in drawn_files(n=n // 2, seed=seed).items():
            archive.writestr(name, content)


def follow(project: Project, script: str) -> None:
    """Run commands of the document in the project, as a person would."""
    finished = project.run("sh", "-ec", script)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def set_up(project: Project) -> None:
    """Follow the document up to the flows, but for the time of day, and let the gate pass what a quick model is."""
    write_archive(project.root / "first.zip", N_FIRST, seed=12)
    follow(project, documented().first_archive)
    settings = documented().settings
    assert settings.count(NIGHTLY) == 1

    def change(params: dict[str, Any]) -> None:
        for section, values in yaml.safe_load(settings.replace(NIGHTLY, EVERY_MINUTE)).items():
            params[section] |= values
        del params["candidates"]["finetune"]
        params["promote"] |= {
            "floors": {},
            "max_ece": 1,
            "min_slice_recall": 0,
            "budgets": {"p95_ms": 10000, "resident_mb": 10000, "size_mb": 1000},
        }

    project.edit_params(change)


def drop_batch(project: Project) -> None:
    write_archive(project.root / "north-pier.zip", N_IMAGES, seed=11)
    follow(project, documented().batch)


@contextmanager
def running(project: Project, *command: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own, which is killed with the block."""
    process = project.start(*command, **env)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def runs_of_retraining(api: str) -> list[dict[str, Any]]:
    """Return the runs of the schedule that have ended, oldest first, without missed ones that a later run replaced."""
    wanted = {"flows": {"name": {"any_": ["retraining"]}}, "sort": "START_TIME_ASC"}
    with SyncPrefectClient(api) as client:  # asks again where the server's SQLite was locked (503)
        found = client.request("POST", "/flow_runs/filter", json=wanted).json()
    return [run for run in found if run["auto_scheduled"] and run["end_time"] and run["state_type"] != "CANCELLED"]


def outcome_of(project: Project) -> dict[str, Any]:
    """What must be the same however often a retraining was interrupted."""
    registered = project.json("reports/registered.json")
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        hashes = store.execute("select value from model_version_tags where key = 'cracks.model_hash'").fetchall()
    manifest = pd.read_parquet(project.root / "data" / "manifest.parquet")
    return {
        "scores": project.json("reports/scores.json"),
        "version": registered["version"],
        "models": sorted(hashes),
        "aliases": project.model_versions(),
        "images of the site": int((manifest["dataset"] == "site").sum()),
        "record": [(row["file"], row["n_images"], row["trained_as"]) for row in project.json("data/batches.json")],
        "archives": sorted(path.name for path in (project.root / SITE).iterdir()),
        "inbox": sorted(path.name for path in (project.root / "data" / "inbox").iterdir() if path.suffix == ".zip"),
        "uncommitted": project.run("git", "status", "--porcelain", "--", "data", "dvc.lock").stdout,
    }


@pytest.fixture(scope="module")
def waiting(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a trained project set up by the document, with a new batch in its inbox; tests work on copies of it."""
    project = copy_of(trained.root, tmp_path_factory.mktemp("waiting") / "project")
    set_up(project)
    drop_batch(project)
    return project


class Undisturbed:
    """What the served schedules did by themselves: the runs, the messages that were sent, the project afterwards."""

    def __init__(self, project: Project, api: str) -> None:
        self.project = project
        check, serve = documented().serve
        follow(project, check)
        with webhook() as (address, self.messages):
            env = {"PREFECT_API_URL": api, "CRACKS_NOTIFY_URL": address, **QUICK_POLL}
            with running(project, *shlex.split(serve, comments=True), **env):
                wait_until(lambda: len(runs_of_retraining(api)) >= 2, PATIENCE_S)
                self.runs = runs_of_retraining(api)
        self.outcome = outcome_of(project)

    @property
    def seconds(self) -> float:
        """How long the retraining took that had something to do."""
        return float(self.runs[0]["total_run_time"])


@pytest.fixture(scope="module")
def undisturbed(waiting: Project, prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    yield Undisturbed(copy_of(waiting.root, tmp_path_factory.mktemp("undisturbed") / "project"), prefect_api)
    with SyncPrefectClient(prefect_api) as client:  # its schedules would go on
        for deployment in our_deployments(client):
            client.request("DELETE", f"/deployments/{deployment.id}")


@pytest.mark.slow(150)
def test_who_follows_the_document_in_a_clone_of_git_finds_the_batch_in_production_and_nothing_done_twice(
    undisturbed: Undisturbed,
) -> None:
    first, second = undisturbed.runs[:2]
    assert (first["state_name"], first["state"]["message"]) == ("Completed", "version 2 is promoted")
    assert (second["state_name"], second["state"]["message"]) == ("Nothing to do", "No new batch is in the inbox.")
    assert second["total_run_time"] < 15
    assert undisturbed.outcome["aliases"] == [("1", ""), ("2", "challenger"), ("2", "production")]
    assert undisturbed.outcome["record"] == [("0001-north-pier.zip", N_IMAGES, "2")]
    assert undisturbed.outcome["images of the site"] == N_FIRST + N_IMAGES
    assert undisturbed.outcome["uncommitted"] == ""
    (message,) = undisturbed.messages
    assert message["title"] == "Concrete cracks: version 2 is promoted"
    lines = message["message"].splitlines()
    assert len(lines) == 5
    assert lines[0] == f"New batches of site: 0001-north-pier.zip ({N_IMAGES} images)"


def test_an_old_model_is_told_of_once_with_the_images_most_worth_labelling(
    project: Project, prefect_api: str, draw_tile: Callable[..., Pixels]
) -> None:
    seen = project.root / "seen"
    seen.mkdir()
    for number in range(3):
        Image.fromarray(draw_tile(number)).save(seen / f"{number}.png")
    scored = project.run("cracks", "predict", "seen", "--model", "challenger", "--out", "scores.csv", "--log")
    assert scored.returncode == 0, scored.stderr
    with contextlib.closing(sqlite3.connect(project.root / "mlflow" / "mlflow.db")) as store:
        store.execute("update model_versions set creation_time = 0")
        store.commit()
    with webhook() as (address, messages):
        for _ in range(2):
            ended = project.run(*RETRAIN, PREFECT_API_URL=prefect_api, CRACKS_NOTIFY_URL=address)
            assert ended.returncode == 0, ended.stdout + ended.stderr
    (message,) = messages
    assert message["title"] == "Concrete cracks: the model is old"
    to_label = project.root / "data" / "monitoring" / "to-label"
    assert message["message"].splitlines() == [
        "Version 1 is older than 180 days, and no new batch has come.",
        f"The 3 images most worth labelling, of 3, are listed in {to_label / 'list.csv'}; 3 of them are copied there. "
        "Label them, and put them into data/inbox/ as a batch.",
    ]
    assert sorted(path.name[5:] for path in to_label.glob("*.png")) == ["0.png", "1.png", "2.png"]


def moments() -> list[float]:
    """Return when to kill, as a share of how long an undisturbed retraining takes."""
    chance = random.Random(SEED)  # noqa: S311
    return [round(chance.uniform(0, 1), 3) for _ in range(N_KILLS)]


@pytest.mark.soak
@pytest.mark.parametrize("moment", moments())
def test_a_retraining_that_is_killed_ends_as_an_undisturbed_one_when_it_runs_again(
    waiting: Project, undisturbed: Undisturbed, prefect_api: str, tmp_path: Path, moment: float
) -> None:
    project = copy_of(waiting.root, tmp_path / "project")
    began_s = time.monotonic()
    with running(project, *RETRAIN, PREFECT_API_URL=prefect_api) as process:
        try:
            process.wait(moment * undisturbed.seconds)
        except subprocess.TimeoutExpired:
            log.info("killed after %.1f s, at %s of an undisturbed run", time.monotonic() - began_s, moment)
    again = project.run(*RETRAIN, PREFECT_API_URL=prefect_api)
    assert again.returncode == 0, again.stdout + again.stderr
    assert outcome_of(project) == undisturbed.outcome
    shutil.rmtree(project.root)


@contextmanager
def tracking_server(project: Project, port: int) -> Iterator[str]:
    """Run an MLflow server on the store of a project, as `make up` does; yield its address."""
    store = f"sqlite:///{project.root / 'mlflow' / 'mlflow.db'}"
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--no-serve-artifacts"]
    command += ["--backend-store-uri", store, "--default-artifact-root", (project.root / "mlflow/artifacts").as_uri()]
    environment = project.environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with project.root.with_name("mlflow.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=project.root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{address}/health").is_success
        return False

    try:
        wait_until(answers)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def remote_of(project: Project) -> Iterator[tuple[Any, dict[str, str]]]:
    """Give a project a remote of DVC, an S3 store on loopback; yield the store and the environment that opens it."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    port = unused_port()
    store = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    store.start()
    env = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "of-the-store") | {"AWS_MAX_ATTEMPTS": "1"}
    httpx.put(f"http://127.0.0.1:{port}/batches").raise_for_status()
    for command in (
        ("dvc", "remote", "add", "--local", "--default", "store", "s3://batches/dvc"),
        ("dvc", "remote", "modify", "--local", "store", "endpointurl", f"http://127.0.0.1:{port}"),
    ):
        assert project.run(*command).returncode == 0
    try:
        yield store, env
    finally:
        store.stop()


def retrain_until(project: Project, stage: str, stop: Callable[[], None], env: dict[str, str]) -> str:
    """Retrain and `stop` something as soon as a stage runs; return what the run printed, which must fail."""
    with running(project, *RETRAIN, **env) as process:
        wait_until(
            lambda: f"Running stage '{stage}" in project.log.read_text() or process.poll() is not None, PATIENCE_S
        )
        stop()
        assert process.wait(PATIENCE_S) == 4
    printed = project.log.read_text()
    assert f"Running stage '{stage}" in printed
    return printed


@pytest.mark.soak
def test_a_retraining_whose_services_go_away_fails_in_words_and_later_runs_end_as_an_undisturbed_one(
    waiting: Project, undisturbed: Undisturbed, prefect_api: str, tmp_path: Path
) -> None:
    project = copy_of(waiting.root, tmp_path / "project")
    project.edit_params(lambda params: params["flow"].update(max_retries=2, retry_pause_s=1))
    mlflow_port = unused_port()
    with remote_of(project) as (store, env), webhook() as (address, messages):
        env |= {"PREFECT_API_URL": prefect_api, "CRACKS_NOTIFY_URL": address}
        with contextlib.ExitStack() as tracking:
            env["MLFLOW_TRACKING_URI"] = tracking.enter_context(tracking_server(project, mlflow_port))
            printed = retrain_until(project, "train@", tracking.close, env)
        assert [f"will start {pause_s}.0 second" in printed for pause_s in (1, 2, 4)] == [True, True, False]
        assert outcome_of(project)["record"] == [("0001-north-pier.zip", N_IMAGES, None)]
        assert project.model_versions() == [("1", "challenger")]

        with tracking_server(project, mlflow_port):
            printed = retrain_until(project, "register", store.stop, env)
            assert "Running stage 'train@" not in printed
            assert [f"will start {pause_s}.0 second" in printed for pause_s in (1, 2, 4)] == [True, True, False]
            assert project.model_versions() == [("1", ""), ("2", "challenger")]
            assert outcome_of(project)["record"] == [("0001-north-pier.zip", N_IMAGES, None)]

            store.start()
            ended = project.run(*RETRAIN, **env)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert "Running stage" not in ended.stdout + ended.stderr
    assert outcome_of(project) == undisturbed.outcome
    failures = [message["message"].splitlines()[0] for message in messages[:-1]]
    assert [message["title"] for message in messages] == [
        "Concrete cracks: retraining failed",
        "Concrete cracks: retraining failed",
        "Concrete cracks: version 2 is promoted",
    ]
    assert "does not answer" in failures[0]
    assert "`dvc push` failed" in failures[1]
    shutil.rmtree(project.root)
