"""The retraining flow on stages that are lines of shell: what it takes, in which order, and what a kill leaves."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from archive_writer import write_zip
from conftest import Project
from drawn_data import drawn_files
from toy_project import toy_project, write_stages

pytestmark = pytest.mark.slow

SITE = "data/incoming/Brücke Süd (2024)"  # a name as people give it
FILES = drawn_files(n=4, seed=5)
# The model is the list of the archives, and its version how many there are; the gate says yes.
REGISTERED = '{\\"name\\": \\"cracks\\", \\"version\\": \\"$n\\", \\"run_id\\": \\"1\\"}'
STAGES = {
    "list": {"cmd": f"ls '{SITE}' > list", "deps": [SITE], "outs": ["list"]},
    "train": {"cmd": "sleep 1 && cat list > model", "deps": ["list"], "outs": ["model"]},
    "register": {
        "cmd": f'n=$(wc -l < model) && echo "{REGISTERED}" > reports/registered.json',
        "deps": ["model"],
        "outs": [{"reports/registered.json": {"cache": False, "persist": True}}],
    },
}
FLOW = """
import sys
from pipeline.errors import UnavailableError
from pipeline.inbox import retraining as steps
outage = [UnavailableError("The registry does not answer.")]
def promote(params, version):
    if outage:
        raise outage.pop()
    return f"version {version} is promoted"
steps.promote = promote
steps.overdue = lambda params, now: None
from flows.retraining import retraining
state = retraining(return_state=True)
print("ended as", state.name + ":", state.message)
sys.exit(not state.is_completed())
"""
N_KILLS, SEED = int(os.environ.get("CRACKS_KILLS", "2")), 20260501


def make_project(root: Path) -> Project:
    project = toy_project(root, STAGES)
    scores = {"f1": 0.9, "ece": 0.1, "n": 18, "interval": {"f1": {"low": 0.8, "high": 0.95}}}
    metrics = project.json("reports/scores.json")
    metrics |= {"trained_on": ["site"], "test": metrics["test"] | scores}
    (root / "reports" / "scores.json").write_text(json.dumps(metrics))

    def change(params: dict[str, Any]) -> None:
        params["datasets"]["site"] = {"source": SITE}
        params["retrain"] |= {"dataset": "site"}

    project.edit_params(change)
    (root / SITE).mkdir(parents=True)
    write_zip(root / SITE / "0000-first.zip", FILES)
    (root / "data" / "inbox").mkdir()
    return project


def drop(project: Project) -> None:
    """Put a batch into the inbox, a bad one, and what is none."""
    inbox = project.root / "data" / "inbox"
    write_zip(inbox / "north.zip", drawn_files(n=4, seed=6))
    write_zip(inbox / "bad.zip", {"crack/a.jpg": b"no image"})
    for name in ("north.zip.done", "bad.zip.done", "south.7z"):
        (inbox / name).touch()


def retrain(project: Project, api: str, expected_code: int = 0) -> str:
    """Run the flow to its end and return how it ended."""
    finished = project.run(sys.executable, "-c", FLOW, PREFECT_API_URL=api)
    assert finished.returncode == expected_code, finished.stdout + finished.stderr
    return next(line for line in finished.stdout.splitlines() if line.startswith("ended as "))


def outcome_of(project: Project) -> dict[str, Any]:
    return {
        "model": (project.root / "model").read_text().split(),
        "version": project.json("reports/registered.json")["version"],
        "archives": sorted(path.name for path in (project.root / SITE).iterdir()),
        "record": [(row["file"], row["n_images"], row["trained_as"]) for row in project.json("data/batches.json")],
        "inbox": sorted(path.name for path in (project.root / "data" / "inbox").iterdir() if path.name[0] != "."),
        "refused": sorted(path.name[9:] for path in (project.root / "data" / "inbox" / "refused").iterdir()),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> dict[str, Any]:
    """Return what comes of one batch when nothing is killed."""
    project = make_project(tmp_path_factory.mktemp("undisturbed") / "project")
    drop(project)
    assert retrain(project, prefect_api) == "ended as Completed: version 2 is promoted"
    ended = retrain(project, prefect_api)
    assert ended.endswith("to do: No new batch is in the inbox. Only archives are taken, and not south.7z.")
    return outcome_of(project)


def test_a_batch_is_taken_trained_on_and_noted_once_and_a_bad_one_beside_it_is_set_aside(
    undisturbed: dict[str, Any],
) -> None:
    assert undisturbed == {
        "model": ["0000-first.zip", "0001-north.zip"],
        "version": "2",
        "archives": ["0000-first.zip", "0001-north.zip"],
        "record": [("0001-north.zip", 8, "2")],
        "inbox": ["refused", "south.7z"],
        "refused": ["bad.zip", "bad.zip.txt"],
    }


def test_a_red_stage_fails_the_run_and_a_later_run_goes_on_with_the_batch(tmp_path: Path, prefect_api: str) -> None:
    project = make_project(tmp_path / "project")
    drop(project)
    red = STAGES["train"] | {"cmd": "echo 'error: The data are red.'; exit 3"}
    write_stages(project.root, STAGES | {"train": red})
    failed = retrain(project, prefect_api, expected_code=1)
    assert failed == "ended as Refused: Stage train failed. The data are red."
    assert outcome_of_record(project) == [("0001-north.zip", None)]
    told = project.json("data/inbox/.told.json")["failure"]
    assert told == ["Concrete cracks: retraining failed", *failed.split("ended as Refused: ")[1:], *told[2:]]
    write_stages(project.root, STAGES)
    assert retrain(project, prefect_api) == "ended as Completed: version 2 is promoted"
    assert outcome_of_record(project) == [("0001-north.zip", "2")]
    assert set(project.json("data/inbox/.told.json")) == {"training", "bad.zip"}  # the failure has passed


def outcome_of_record(project: Project) -> list[tuple[str, str | None]]:
    return [(row["file"], row["trained_as"]) for row in project.json("data/batches.json")]


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> float:
    """Return how long the flow takes on this machine now."""
    import time

    project = make_project(tmp_path_factory.mktemp("timed") / "project")
    drop(project)
    began_s = time.monotonic()
    retrain(project, prefect_api)
    return time.monotonic() - began_s


@pytest.mark.soak
@pytest.mark.parametrize("moment", [round(random.Random(SEED + n).random(), 2) for n in range(N_KILLS)])  # noqa: S311
def test_after_a_kill_at_any_moment_the_next_run_ends_as_an_undisturbed_one(
    tmp_path: Path, prefect_api: str, undisturbed: dict[str, Any], seconds: float, moment: float
) -> None:
    project = make_project(tmp_path / "project")
    drop(project)
    process = project.start(sys.executable, "-c", FLOW, PREFECT_API_URL=prefect_api)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment * seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    retrain(project, prefect_api)
    assert outcome_of(project) == undisturbed
