"""Summarise the last run from its reports, as table rows and lines of text."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import CracksError
from pipeline.project import project_root
from pipeline.registry import tracking
from pipeline.registry.versions import CHALLENGER

Rows = list[dict[str, str]]


def read_report(folder: Path, name: str) -> Any:
    """Load a JSON file from the reports folder. Raises CracksError if it does not exist."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CracksError(f"There is no {folder / name}. Run `make run` first.") from None


def contract_rows(report: dict[str, Any]) -> Rows:
    """Return a row for each rule of a contract's report, broken rules first."""
    words = {"fail": "BROKEN", "warn": "warning"}
    rules = sorted(report["rules"], key=lambda rule: (rule["success"], rule["severity"]))
    return [
        {"state": "met" if rule["success"] else words[rule["severity"]], "rule": rule["text"], "seen": rule["observed"]}
        for rule in rules
    ]


def candidate_rows(folder: Path, candidates: list[str], chosen: str) -> Rows:
    """Return a row for each candidate with its validation scores, lowest selection loss first."""
    scores = {name: read_report(folder, f"candidates/{name}.json") for name in candidates}
    shown = ("selection_loss", "f1", "auroc", "ece")
    return [
        {"candidate": name, "chosen": "yes" if name == chosen else ""}
        | {score: "none" if (value := scores[name][score]) is None else f"{value:.4f}" for score in shown}
        for name in sorted(scores, key=lambda name: float(scores[name]["selection_loss"]))
    ]


def outdated_stages() -> list[str]:
    """Return the stages that `dvc status` lists: those that failed, or did not run since what they read changed."""
    root = project_root()
    if not (root / "dvc.lock").exists():
        return []
    asked = subprocess.run(["dvc", "status", "--json"], cwd=root, capture_output=True, text=True, check=False)
    return [] if asked.returncode else [name for name in json.loads(asked.stdout) if not name.endswith(".dvc")]


def summary_lines(folder: Path, outdated: Sequence[str] = ()) -> list[str]:
    """Return a summary of the last run; the first lines say whether it is a demo, and whether a run failed since.

    `folder` is that of the reports; `outdated` are the stages that are not up to date (`outdated_stages`).
    """
    metrics, registered = read_report(folder, "scores.json"), read_report(folder, "registered.json")
    is_only_unregistered = list(outdated) == ["register"]
    lines = []
    if outdated and not is_only_unregistered:
        lines.append(f"These are results of an EARLIER run: {', '.join(outdated)} failed or did not run since. "
                     "`dvc repro` brings them up to date.")  # fmt: skip
    if metrics["demo"]:
        lines.append("Demo: drawn images. These numbers say nothing about real concrete.")
    lines.append(f"Best candidate, chosen on validation: {metrics['candidate']}")
    for name, scores in {"test": metrics["test"], **metrics["external"]}.items():
        auroc = "none" if scores["auroc"] is None else f"{scores['auroc']:.4f}"
        lines.append(f"  {name}: F1 {scores['f1']:.4f}, AUROC {auroc}, ECE {scores['ece']:.4f}, {scores['n']} images")
    if registered["version"] is None:
        lines.append("Registered: nothing, this was an experiment")
    elif is_only_unregistered:
        lines.append(f"NOT registered yet; `dvc repro` registers it. {registered['name']} version "
                     f"{registered['version']} is of an earlier run.")  # fmt: skip
    else:
        lines.append(f"Registered: {registered['name']} version {registered['version']}, alias {CHALLENGER}")
    lines.append(f"Report: {folder / 'report.html'}")
    return lines


def format_score(scores: dict[str, Any], name: str) -> str:
    """Format a score of scores.json with its 95 % interval, which few groups or a perfect score do not have."""
    interval = scores["interval"][name]
    within = f"{interval['low']:.4f} to {interval['high']:.4f}" if interval else "no interval"
    return f"{name.upper()} {scores[name]:.4f} ({within})"


def mlflow_addresses(registered: dict[str, Any]) -> dict[str, str]:
    """Return the URLs of the run in registered.json and of the report of its repro; empty without a tracking server."""
    uri = tracking.shown_uri().rstrip("/")
    if not uri.startswith("http") or not registered.get("parent_id"):
        return {}
    page = f"{uri}/#/experiments/{registered['experiment_id']}/runs"
    return {
        "run": f"{page}/{registered['run_id']}",
        "report": f"{page}/{registered['parent_id']}/artifacts/report.html",
    }
