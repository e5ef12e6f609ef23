"""What runs again in a trained project after a change, in an experiment, and where a registration is missing."""

import re
import shutil
import sqlite3
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import Project

pytestmark = pytest.mark.slow(25)


def test_a_second_repro_does_nothing(project: Project) -> None:
    assert "Running stage" not in project.repro()


def test_a_change_of_the_report_runs_report_and_register_alone(project: Project) -> None:
    template = project.root / "pipeline" / "evaluation" / "templates" / "report.html.j2"
    template.write_text(template.read_text(encoding="utf-8").replace("All scores", "Every score"), encoding="utf-8")
    assert re.findall(r"^(\S+):", project.run("dvc", "status").stdout, re.MULTILINE) == ["report"]
    assert re.findall(r"Running stage '(.*)'", project.repro()) == ["report", "register"]
    assert "Every score" in (project.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert project.model_versions() == [("1", "challenger")]


def test_touching_a_setting_of_a_candidate_retrains_that_candidate_alone(project: Project) -> None:
    project.edit_params(lambda params: params["candidates"]["probe"].update(n_components=7))
    printed = project.repro("--dry")
    assert "Running stage 'train@probe'" in printed
    for untouched in ("ingest@demo", "validate@demo", "split", "embed@mobilenet-v2", "train@finetune"):
        assert f"Running stage '{untouched}'" not in printed


def test_changing_a_limit_of_the_contract_and_a_citation_trains_and_scores_nothing(project: Project) -> None:
    def change(params: dict[str, Any]) -> None:
        params["contract"].update(min_images_per_label=21)
        params["datasets"]["demo"]["citation"] = "Drawings, A. Person 2026"

    project.edit_params(change)
    ran = re.findall(r"Running stage '(.*)'", project.repro())
    assert ran == ["ingest@demo", "validate@demo", "split", "report", "register"]
    assert "Drawings, A. Person 2026" in (project.root / "reports" / "report.html").read_text(encoding="utf-8")
    results = sorted((project.root / "data" / "gx" / "uncommitted" / "validations" / "demo").rglob("*.json"))
    assert len(results) == 2
    index = project.root / "data" / "gx" / "uncommitted" / "data_docs" / "local_site" / "index.html"
    assert project.run("cracks", "data-docs").stdout.strip() == index.as_uri()
    assert index.exists()


def test_a_removed_candidate_and_a_removed_data_set_no_longer_count(project: Project) -> None:
    def replace(params: dict[str, Any]) -> None:
        del params["candidates"]["finetune"]
        params["datasets"] = {"other": {"source": "data/other.yaml"}}
        params["split"]["train_on"] = ["other"]

    recipe = yaml.safe_load((project.root / "data" / "demo.yaml").read_text(encoding="utf-8")) | {"seed": 7}
    (project.root / "data" / "other.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    project.edit_params(replace)
    project.repro()
    metrics = project.json("reports/scores.json")
    assert (metrics["candidate"], metrics["trained_on"], list(metrics["tests"])) == ("probe", ["other"], ["other"])
    assert set(pd.read_parquet(project.root / "data" / "manifest.parquet")["dataset"]) == {"other"}
    assert "finetune" not in (project.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert project.model_versions() == [("1", ""), ("2", "challenger")]


def test_an_experiment_registers_nothing(project: Project) -> None:
    finished = project.run("dvc", "exp", "run", "--set-param", "candidates.probe.n_components=7")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert project.json("reports/registered.json")["version"] is None
    assert project.model_versions() == [("1", "challenger")]
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        assert set(store.execute("select status from runs")) == {("FINISHED",)}


def test_an_experiment_in_a_temporary_folder_uses_the_store_of_the_project(project: Project) -> None:
    assert project.run("git", "add", "dvc.lock").returncode == 0
    assert project.run("git", "commit", "--message=locked").returncode == 0
    finished = project.run("dvc", "exp", "run", "--temp", "--set-param", "candidates.probe.n_components=7")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        rates = store.execute("select value from params where key = 'n_components' and value = '7'").fetchall()
    assert rates, "the experiment's training is not in the project's store"
    assert project.model_versions() == [("1", "challenger")]


def test_a_registration_is_never_taken_from_the_run_cache(project: Project) -> None:
    shutil.rmtree(project.root / "mlflow" / "artifacts")
    (project.root / "mlflow" / "mlflow.db").unlink()
    (project.root / "dvc.lock").unlink()
    (project.root / "reports" / "registered.json").unlink()
    printed = project.repro()
    assert "Stage 'train@probe' is cached" in printed
    assert project.model_versions() == [("1", "challenger")]


def test_a_model_that_the_store_lacks_is_noticed(project: Project) -> None:
    assert project.run("cracks", "registered").returncode == 0
    shutil.rmtree(project.root / "mlflow" / "artifacts")
    assert project.run("cracks", "registered").returncode == 1
    (project.root / "mlflow" / "mlflow.db").unlink()
    assert project.run("cracks", "registered").returncode == 1
    project.repro("--single-item", "--force", "register")
    assert project.run("cracks", "registered").returncode == 0


def test_with_the_tracking_server_away_training_goes_on_and_the_next_run_registers(project: Project) -> None:
    project.edit_params(lambda params: params["candidates"]["probe"].update(n_components=7))
    first, *_ = project.run("cracks", "summary").stdout.splitlines()
    assert first.startswith("These are results of an EARLIER run: ")
    assert "train@probe" in first
    away = project.run("dvc", "repro", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    printed = away.stdout + away.stderr
    assert away.returncode != 0
    assert "error: The tracking store http://127.0.0.1:9 does not answer" in printed
    assert "Traceback" not in printed
    summary = project.run("cracks", "summary").stdout
    assert "NOT registered yet; `dvc repro` registers it. cracks version 1 is of an earlier run." in summary
    promotion = project.run("cracks", "promote", "--dry-run").stderr
    assert "register failed or did not run since: the challenger is of an earlier run" in promotion
    later = project.repro()
    assert "Running stage 'train@probe'" not in later
    assert "Running stage 'register'" in later
    assert project.json("reports/registered.json")["version"] == "2"
