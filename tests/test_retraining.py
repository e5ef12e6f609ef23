"""Retraining by itself: from an archive in the inbox to production, and nothing twice."""

import sys
import zipfile
from typing import Any

import pytest
from conftest import Project
from drawn_data import drawn_files

SITE = "data/incoming/site"


def prepare(project: Project) -> Project:
    """Let new batches join a data set that is trained on beside the demo, and the gate let pass what few images say."""

    def change(params: dict[str, Any]) -> None:
        params["datasets"]["site"] = {"source": SITE}
        params["split"]["train_on"] = ["demo", "site"]
        del params["candidates"]["finetune"]
        params["retrain"] |= {"dataset": "site"}
        params["flow"] |= {"max_retries": 1, "retry_pause_s": 1}
        params["promote"] |= {
            "floors": {},
            "max_ece": 1,
            "min_slice_recall": 0,
            "min_groups": 4,
            "margins": {"test": 1, "slice": 1, "outside": 1},
            "budgets": {"p95_ms": 10000, "resident_mb": 10000, "size_mb": 1000},
        }

    project.edit_params(change)
    return project


def drop(project: Project, name: str = "north.zip", *, seed: int = 11, n: int = 30) -> None:
    inbox = project.root / "data" / "inbox"
    inbox.mkdir(exist_ok=True)
    with zipfile.ZipFile(inbox / name, "w") as archive:
        for path, content in drawn_files(n=n, seed=seed).items():
            archive.writestr(path, content)
    (inbox / f"{name}.done").touch()


def retrain(project: Project, **env: str) -> str:
    finished = project.run(sys.executable, "-m", "flows.retraining", **env)
    return finished.stdout + finished.stderr


@pytest.mark.slow
def test_road(project: Project) -> None:
    prepare(project)
    drop(project)
    import time

    t = time.monotonic()
    print(retrain(project))
    print(time.monotonic() - t)
    print(project.model_versions())
    print((project.root / "data" / "batches.json").read_text())
    print(project.run("git", "log", "--stat").stdout, project.run("git", "status", "--short").stdout)
    t = time.monotonic()
    print(retrain(project))
    print(time.monotonic() - t)
    print(project.run("cracks", "batches").stdout)
    assert 0
