"""What DVC shows of a run fits a terminal."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, Project

from pipeline.evaluate import summarise, write_metrics
from pipeline.files import write_json
from pipeline.models.decision import Decision
from pipeline.params import load_params

EXAMPLE = ROOT / "examples" / "params.metu-sdnet.yaml"
EXTERNAL = ("bridges_of_2024", "sdnet")
COLUMNS = 120


def write_scores(project: Project, seed: int) -> None:
    """Write the metrics of a model of `EXAMPLE`, but with two external test sets."""
    rng = np.random.default_rng(seed)
    names = rng.choice(["metu", *EXTERNAL], 3000)
    table = pd.DataFrame({"dataset": names, "split": np.where(names == "metu", "test", "external")})
    table["label"] = rng.choice(["crack", "intact"], len(table))
    table["probability"] = rng.random(len(table))
    table["group"] = table.index.astype(str)
    split = {"n_images": 12780, "n_groups": 11000, "n_copies": 1780, "n_excluded": 0, "leaks": 0}
    decision, none_left_out = Decision(0.4033564, 0.3, 0.6), {"scores": {}, "not_measured": {}}
    summary = summarise(load_params(EXAMPLE), "mosaics-lite0", split, table, decision, none_left_out)
    write_metrics(summary, project.root / "data" / "metrics.json", project.root / "data" / "external")
    write_json(project.root / "data" / "tracer.json", {"lines": round(rng.random(), 4)})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with the paths and the params of the real stage, and the metrics of two commits."""
    project = Project(tmp_path_factory.mktemp("tables"))
    shutil.copy(EXAMPLE, project.root / "params.yaml")
    (project.root / "reports").mkdir()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    copying = {"cmd": "cp -r data/. reports/", "deps": ["data"], "params": stages["evaluate"]["params"]}
    metrics = [*stages["evaluate"]["metrics"], *stages["train_tracer"]["metrics"]]
    stages = {"evaluate": {**copying, "metrics": metrics}}
    (project.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    for command in ("git init --quiet", "git config user.name a", "git config user.email a@b", "dvc init --quiet"):
        ran(project, command)
    for seed in (1, 2):
        write_scores(project, seed)
        project.edit_params(lambda params, seed=seed: params["candidates"]["mosaics-lite0"].update(n_components=seed))
        project.repro("--quiet")
        if seed == 1:
            ran(project, "git add .")
            ran(project, "git commit --quiet --message first")
    return project


def ran(project: Project, command: str) -> str:
    """Run a command in a terminal of 120 columns and return what it printed."""
    finished = project.run("bash", "-c", command, COLUMNS=str(COLUMNS))
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def widest(printed: str) -> int:
    return max(len(line) for line in printed.splitlines())


def test_metrics_show_has_a_row_a_set_and_fits(project: Project) -> None:
    printed = ran(project, "dvc metrics show")
    head, *rows = (line.split() for line in printed.splitlines())
    assert head == ["Path", "auroc", "balanced_accuracy", "ece", "f1", "leaks", "lines", "n", "threshold"]
    assert [row[0] for row in rows] == [
        "reports/metrics.json",
        *sorted(f"reports/external/{name}.json" for name in EXTERNAL),
        "reports/tracer.json",
    ]
    assert rows[0][-1] == "0.40336"
    assert all(row[3:] == ["-"] * 6 for row in rows[1:-1])
    assert rows[-1].count("-") == 7
    assert widest(printed) <= COLUMNS


def test_metrics_diff_fits(project: Project) -> None:
    printed = ran(project, "dvc metrics diff")
    assert "reports/external/sdnet.json" in printed
    assert widest(printed) <= COLUMNS


def test_experiments_are_compared_by_what_differs_within_the_width(project: Project) -> None:
    planned = ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/installed", "experiments"]
    command = subprocess.run(planned, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    printed = ran(project, command)
    assert {"Experiment", "f1", "ece", "reports/external/bridges_of_2024.json:auroc"} <= set(printed.split())
    assert "data" not in printed
    assert widest(printed) <= COLUMNS
