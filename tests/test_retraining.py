"""Retraining by itself, with the real tools: from an archive in the inbox to production, and nothing twice."""

import contextlib
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from conftest import Project, copy_of, wait_until
from drawn_data import drawn_files
from webhook import webhook

pytestmark = pytest.mark.slow
log = logging.getLogger(__name__)

SITE = "data/incoming/site"
N_IMAGES = 60
N_KILLS, SEED = int(os.environ.get("CRACKS_KILLS", "1")), 20260501
PATIENCE_S = 400
SCHEDULE = """
from prefect.types.entrypoint import EntrypointType
from flows.retraining import retraining
retraining.serve("retraining", interval=20, limit=1, entrypoint_type=EntrypointType.MODULE_PATH)
"""


def open_the_inbox(project: Project) -> None:
    """Let batches join a data set that is trained on beside the demo, and the gate let pass what few images say."""

    def change(params: dict[str, Any]) -> None:
        params["datasets"]["site"] = {"source": SITE}
        params["split"]["train_on"] = ["demo", "site"]
        del params["candidates"]["finetune"]
        params["retrain"] |= {"dataset": "site"}
        params["promote"] |= {
            "floors": {},
            "max_ece": 1,
            "min_slice_recall": 0,
            "min_groups": 4,
            "margins": {"test": 1, "slice": 1, "outside": 1},
            "budgets": {"p95_ms": 10000, "resident_mb": 10000, "size_mb": 1000},
        }

    project.edit_params(change)


def drop_batch(project: Project) -> None:
    inbox = project.root / "data" / "inbox"
    with zipfile.ZipFile(inbox / "north.zip", "w") as archive:
        for path, content in drawn_files(n=N_IMAGES // 2, seed=11).items():
            archive.writestr(path, content)
    (inbox / "north.zip.done").touch()


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
    """Return the runs of the schedule that have ended, oldest first."""
    wanted = {"flows": {"name": {"any_": ["retraining"]}}, "sort": "START_TIME_ASC"}
    found = httpx.post(f"{api}/flow_runs/filter", json=wanted, timeout=30).raise_for_status().json()
    return [run for run in found if run["auto_scheduled"] and run["end_time"]]


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "performance"}


def outcome_of(project: Project) -> dict[str, Any]:
    """What must be the same however often a retraining was interrupted."""
    registered = project.json("reports/registered.json")
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        hashes = store.execute("select value from model_version_tags where key = 'cracks.model_hash'").fetchall()
    manifest = pd.read_parquet(project.root / "data" / "manifest.parquet")
    return {
        "metrics": without_times(project.json("reports/metrics.json")),
        "version": registered["version"],
        "models": sorted(hashes),
        "aliases": project.model_versions(),
        "images of the batch": int((manifest["dataset"] == "site").sum()),
        "record": [(row["file"], row["n_images"], row["trained_as"]) for row in project.json("data/batches.json")],
        "archives": sorted(path.name for path in (project.root / SITE).iterdir()),
        "inbox": sorted(path.name for path in (project.root / "data" / "inbox").iterdir() if path.suffix == ".zip"),
        "uncommitted": project.run("git", "status", "--porcelain", "--", "data", "dvc.lock").stdout,
    }


@pytest.fixture(scope="module")
def waiting(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a trained project with a new batch in its inbox; tests work on copies of it."""
    project = copy_of(trained.root, tmp_path_factory.mktemp("waiting") / "project")
    open_the_inbox(project)
    drop_batch(project)
    return project


class Undisturbed:
    """What an interval schedule did by itself: its runs, the messages that it sent, the project afterwards."""

    def __init__(self, project: Project, api: str) -> None:
        self.project = project
        with webhook() as (address, self.messages):
            env = {"PREFECT_API_URL": api, "CRACKS_NOTIFY_URL": address}
            with running(project, sys.executable, "-c", SCHEDULE, **env):
                wait_until(lambda: len(runs_of_retraining(api)) >= 2, PATIENCE_S)
                self.runs = runs_of_retraining(api)
        self.outcome = outcome_of(project)

    @property
    def seconds(self) -> float:
        """How long the retraining took that had something to do."""
        return float(self.runs[0]["total_run_time"])


@pytest.fixture(scope="module")
def undisturbed(waiting: Project, prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(copy_of(waiting.root, tmp_path_factory.mktemp("undisturbed") / "project"), prefect_api)


def test_a_schedule_finds_the_batch_retrains_promotes_and_tells_then_finds_nothing_to_do(
    undisturbed: Undisturbed,
) -> None:
    first, second = undisturbed.runs[:2]
    assert (first["state_name"], first["state"]["message"]) == ("Completed", "version 2 is promoted")
    assert (second["state_name"], second["state"]["message"]) == ("Nothing to do", "No new batch is in the inbox.")
    assert second["total_run_time"] < 15
    assert undisturbed.outcome["aliases"] == [("1", ""), ("2", "challenger"), ("2", "production")]
    assert undisturbed.outcome["record"] == [("0001-north.zip", N_IMAGES, "2")]
    assert undisturbed.outcome["images of the batch"] == N_IMAGES
    assert undisturbed.outcome["uncommitted"] == ""
    (message,) = undisturbed.messages
    assert message["title"] == "Concrete cracks: version 2 is promoted"
    lines = message["message"].splitlines()
    assert len(lines) == 5
    assert lines[0] == f"New batches of site: 0001-north.zip ({N_IMAGES} images)"


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
    command = (sys.executable, "-m", "flows.retraining")
    began_s = time.monotonic()
    with running(project, *command, PREFECT_API_URL=prefect_api) as process:
        try:
            process.wait(moment * undisturbed.seconds)
        except subprocess.TimeoutExpired:
            log.info("killed after %.1f s, at %s of an undisturbed run", time.monotonic() - began_s, moment)
    again = project.run(*command, PREFECT_API_URL=prefect_api)
    assert again.returncode == 0, again.stdout + again.stderr
    assert outcome_of(project) == undisturbed.outcome
    shutil.rmtree(project.root)
