"""What the last run came to, as others show it."""

import json

import pytest
from toy_project import CANDIDATES, diamond, toy_project

from pipeline.errors import CracksError
from pipeline.registry import run_summary


@pytest.fixture
def reports(tmp_path):
    return toy_project(tmp_path / "project", diamond()).root / "reports"


def test_a_broken_rule_comes_first_then_warnings_then_what_is_met():
    def rule(text: str, severity: str, *, success: bool) -> dict[str, object]:
        return {"text": text, "severity": severity, "success": success, "observed": "7"}

    report = {
        "rules": [
            rule("a", "fail", success=True),
            rule("b", "warn", success=False),
            rule("c", "fail", success=False),
        ]
    }
    assert run_summary.contract_rows(report) == [
        {"state": "BROKEN", "rule": "c", "seen": "7"},
        {"state": "warning", "rule": "b", "seen": "7"},
        {"state": "met", "rule": "a", "seen": "7"},
    ]


def test_candidates_come_in_the_order_of_their_loss_and_the_chosen_one_is_marked(reports):
    worse = reports / "candidates" / f"{CANDIDATES[0]}.json"
    worse.write_text(json.dumps(json.loads(worse.read_text()) | {"selection_loss": 0.5}))
    rows = run_summary.candidate_rows(reports, list(CANDIDATES), CANDIDATES[1])
    assert [(row["candidate"], row["chosen"], row["selection_loss"]) for row in rows] == [
        (CANDIDATES[1], "yes", "0.2000"),
        (CANDIDATES[0], "", "0.5000"),
    ]
    assert rows[0]["auroc"] == "none"


def test_the_summary_says_first_that_it_is_a_demo(reports):
    lines = run_summary.summary_lines(reports)
    assert lines[0].startswith("Demo: drawn images")
    assert "Registered: cracks version 1, alias challenger" in lines


def test_a_report_that_is_not_there_names_the_command_that_writes_it(tmp_path):
    with pytest.raises(CracksError, match="make run"):
        run_summary.read_report(tmp_path, "scores.json")


REGISTERED = {"name": "cracks", "version": "1", "run_id": "child", "parent_id": "parent", "experiment_id": "3"}


def test_a_tracking_server_shows_the_run_and_the_report_of_its_parent_and_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://someone:secret@host:5000/")
    assert run_summary.mlflow_addresses(REGISTERED) == {
        "run": "https://host:5000/#/experiments/3/runs/child",
        "report": "https://host:5000/#/experiments/3/runs/parent/artifacts/report.html",
    }


@pytest.mark.parametrize("registered", [REGISTERED, {"name": "cracks", "version": "1", "run_id": "of 0.1.0"}])
def test_without_a_tracking_server_or_what_it_needs_there_are_no_addresses(registered, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "" if "parent_id" in registered else "http://host")
    assert run_summary.mlflow_addresses(registered) == {}
