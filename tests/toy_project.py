"""A project whose stages are lines of shell, for tests of how stages run and not of what they do."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, Project

CANDIDATES = ("probe-lite0", "finetune-mobilenet")  # of params.yaml
QUICK_FLOW = {"max_parallel_stages": 2, "stage_timeout_minutes": 5, "max_retries": 3, "retry_pause_s": 0.01}

Stages = dict[str, dict[str, Any]]


def toy_project(root: Path, stages: Stages, **flow: float) -> Project:
    """Make a DVC project of these stages in a new folder, with these settings of `flow` and a last run's reports."""
    (root / ".dvc" / "tmp").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    )
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["flow"] = QUICK_FLOW | flow
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    write_stages(root, stages)
    _write_reports(root / "reports")
    return Project(root)


def write_stages(root: Path, stages: Stages) -> None:
    """Make these the project's stages."""
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")


def diamond(left: str = "cat a > left", right: str = "cat a > right") -> Stages:
    """Return stages of which two wait for a first one, and a last one for the two."""
    return {
        "first": {"cmd": "echo a > a", "deps": ["params.yaml"], "outs": ["a"]},
        "left": {"cmd": left, "deps": ["a"], "outs": ["left"]},
        "right": {"cmd": right, "deps": ["a"], "outs": ["right"]},
        "last": {"cmd": "cat left right > last", "deps": ["left", "right"], "outs": ["last"]},
    }


def copy_toy(project: Project, target: Path) -> Project:
    """Return a copy of the project in which nothing has run."""
    target.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project.root / name, target / name)
    shutil.copytree(project.root / ".dvc", target / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    return Project(target)


def _write_reports(folder: Path) -> None:
    scores = {"selection_loss": 0.2, "f1": 0.9, "auroc": None, "ece": 0.1, "n": 18}
    rule = {"text": "both labels are there", "severity": "fail", "success": True, "observed": "both", "paths": []}
    files = {
        "scores": {"demo": True, "candidate": CANDIDATES[0], "test": scores, "external": {}},
        "registered": {"name": "cracks", "version": "1", "run_id": "1234"},
        "validation-demo": {"dataset": "demo", "success": True, "facts": {}, "rules": [rule]},
        **{f"candidates/{name}": scores for name in CANDIDATES},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
