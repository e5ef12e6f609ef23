"""The pipeline end to end, with the real DVC, MLflow and Prefect, on a few small drawn images."""

import base64
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml
from api_server import Server
from conftest import SMALL_RECIPE, Project, answers, unused_port, wait_until
from PIL import Image

pytestmark = pytest.mark.slow


def test_one_command_leads_from_drawings_to_a_registered_model(trained: Project) -> None:
    metrics = trained.json("reports/scores.json")
    assert metrics["demo"] is True
    assert metrics["trained_on"] == ["demo"]
    assert metrics["split"]["leaks"] == 0
    assert metrics["split"]["n_copies"] == 2 * SMALL_RECIPE["mirrored_per_class"]
    assert metrics["test"]["auroc"] > 0.7
    assert trained.json("reports/registered.json")["version"] == "1"
    assert trained.model_versions() == [("1", "challenger")]
    assert "Demo: drawn images" in (trained.root / "reports" / "report.html").read_text(encoding="utf-8")


def test_a_run_leaves_nothing_for_git_to_see_but_the_lock_file(trained: Project) -> None:
    assert trained.run("git", "status", "--porcelain").stdout == "?? dvc.lock\n"


def test_the_summary_says_that_it_is_a_demo(trained: Project) -> None:
    printed = trained.run("cracks", "summary").stdout
    assert "Demo: drawn images" in printed
    assert "cracks version 1" in printed
    assert "reports/report.html" in printed


def test_the_packed_images_are_not_kept_twice_on_disk(trained: Project) -> None:
    packed = trained.root / "data" / "datasets" / "demo" / "images.bin"
    assert packed.is_symlink() or packed.stat().st_nlink > 1


def test_a_second_repro_does_nothing(project: Project) -> None:
    assert "Running stage" not in project.repro()


def test_a_change_of_the_report_runs_report_and_register_alone(project: Project) -> None:
    template = project.root / "pipeline" / "evaluation" / "templates" / "report.html.j2"
    template.write_text(template.read_text(encoding="utf-8").replace("All scores", "Every score"), encoding="utf-8")
    assert re.findall(r"^(\S+):", project.run("dvc", "status").stdout, re.MULTILINE) == ["report"]
    assert re.findall(r"Running stage '(.*)'", project.repro()) == ["report", "register"]
    assert "Every score" in (project.root / "reports" / "report.html").read_text(encoding="utf-8")
    assert project.model_versions() == [("1", "challenger")]


def test_the_metrics_of_a_run_fit_a_terminal_and_its_plots_are_drawn(project: Project) -> None:
    printed = project.run("dvc", "metrics", "show").stdout.splitlines()
    assert [line.split()[0] for line in printed] == ["Path", "reports/metrics.json", "reports/tracer.json"]
    assert max(map(len, printed)) <= 120
    assert project.run("dvc", "plots", "show").returncode == 0
    drawn = (project.root / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    for title in ("ROC on test", "Calibration on test", "Validation loss of all candidates"):
        assert drawn.count(f'"{title}"') == 1
    assert {'"candidate": "probe"', '"candidate": "finetune"'} <= set(re.findall(r'"candidate": "\w+"', drawn))


def test_the_flow_shows_every_stage_as_cached(project: Project) -> None:
    finished = project.run(sys.executable, "-m", "flows.training")
    printed = finished.stdout + finished.stderr
    assert finished.returncode == 0, printed
    stages = project.run("dvc", "stage", "list", "--name-only").stdout.split()
    assert len(stages) == 12
    assert [stage for stage in stages if f"Task run '{stage}' - Finished in state Cached" not in printed] == []


def test_a_training_that_was_killed_goes_on_and_ends_with_the_scores_of_an_undisturbed_one(project: Project) -> None:
    scores = project.json("reports/candidates/finetune.json")
    command = yaml.safe_load((project.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]["do"]["cmd"]
    command = command.replace("${key}", "finetune").replace("${item.backbone}", "mobilenet-v2").split()
    shutil.rmtree(project.root / "models" / "finetune")
    (project.root / "reports" / "candidates" / "finetune.json").unlink()

    killed = project.start(sys.executable, *command[1:])
    wait_until(lambda: list(project.root.glob("data/checkpoints/train/finetune/*/history.jsonl")))
    killed.kill()
    killed.wait()
    assert not (project.root / "models" / "finetune").exists()
    (kept,) = project.root.glob("data/checkpoints/train/finetune/*/history.jsonl")
    assert kept.read_text(encoding="utf-8").count("head") == 1

    finished = project.run(sys.executable, *command[1:])
    assert finished.returncode == 0, finished.stderr
    again = project.json("reports/candidates/finetune.json")
    for name in ("selection_loss", "f1", "auroc", "ece", "threshold"):
        assert again[name] == pytest.approx(scores[name], rel=1e-4), name


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


def golden_files(project: Project) -> list[bytes]:
    """Return the golden images of the registered model as PNG files."""
    (golden,) = project.root.glob("mlflow/artifacts/**/golden.npz")
    files = []
    with np.load(golden) as arrays:
        for number in range(len(arrays["probabilities"])):
            buffer = io.BytesIO()
            Image.fromarray(arrays[f"image_{number}"]).save(buffer, "PNG")
            files.append(buffer.getvalue())
    return files


def test_the_commands_of_mlflow_answer_as_the_api_does(project: Project, tmp_path: Path) -> None:
    store = f"sqlite:///{project.root}/mlflow/mlflow.db"
    put_there = (  # as if it had been trained on photos: the API does not answer with a demo
        "import mlflow; client = mlflow.MlflowClient(); client.set_model_version_tag('cracks', '1', 'demo', 'false'); "
        "client.set_registered_model_alias('cracks', 'production', '1')"
    )
    assert project.run(sys.executable, "-c", put_there, MLFLOW_TRACKING_URI=store).returncode == 0
    files = golden_files(project)
    with Server(tmp_path / "api", registry=store) as api:
        api.wait_until_ready()
        with api.client() as client:
            answer = client.post("/v1/predict", files=[("files", ("a.png", file)) for file in files])
    expected = [(image["probability"], image["label"]) for image in answer.json()["predictions"]]
    assert len(expected) == 8

    def check(rows: list[dict[str, Any]]) -> None:
        assert [row["label"] for row in rows] == [label for _, label in expected]
        assert [row["probability"] for row in rows] == pytest.approx([value for value, _ in expected], abs=1e-6)
        assert all("in_distribution" in row for row in rows)

    request = {"inputs": [base64.b64encode(file).decode() for file in files]}
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    model = ("-m", "models:/cracks@production", "--env-manager", "local")
    predict = ("mlflow", "models", "predict", *model, "-i", str(tmp_path / "request.json"), "-o", str(tmp_path / "out"))
    predicted = project.run(*predict, MLFLOW_TRACKING_URI=store)
    assert predicted.returncode == 0, predicted.stderr
    check(json.loads((tmp_path / "out").read_text(encoding="utf-8"))["predictions"])

    url = f"http://127.0.0.1:{(port := unused_port())}"
    serving = project.start("mlflow", "models", "serve", *model, "-p", str(port), MLFLOW_TRACKING_URI=store)
    try:
        wait_until(lambda: serving.poll() is not None or answers(f"{url}/ping"))
        assert serving.poll() is None, project.log.read_text(encoding="utf-8")
        check(httpx.post(f"{url}/invocations", json=request, timeout=60).json()["predictions"])
        refused = httpx.post(f"{url}/invocations", json={"inputs": ["no image"]}, timeout=60)
        assert (refused.status_code, "image 0: neither" in refused.text) == (400, True)
    finally:
        os.killpg(serving.pid, signal.SIGKILL)
        serving.wait()


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


def test_a_person_scores_images_with_the_challenger(project: Project) -> None:
    content = (project.root / "data" / "datasets" / "demo" / "images.bin").read_bytes()
    first = pd.read_parquet(project.root / "data" / "datasets" / "demo" / "inventory.parquet").iloc[0]
    photo = project.root / "photo.jpg"
    photo.write_bytes(content[first["offset"] : first["offset"] + first["n_bytes"]])
    by_default = project.run("cracks", "predict", "photo.jpg", "--out", "out/predictions.csv")
    assert by_default.returncode == 0, by_default.stderr
    assert "the starter model, trained on METU and SDNET2018, because no model of cracks" in by_default.stderr
    finished = project.run("cracks", "predict", "photo.jpg", "--model", "challenger", "--out", "out/predictions.csv")
    assert finished.returncode == 0, finished.stderr
    assert "cracks version 1 (challenger), trained on drawn images (demo)" in finished.stderr
    table = pd.read_csv(project.root / "out" / "predictions.csv")
    assert list(table.columns) == ["path", "probability", "label", "reason", "error"]
    assert set(table["label"]) <= {"crack", "intact", "review"}
