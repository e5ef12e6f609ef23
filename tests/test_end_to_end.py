"""The pipeline end to end, with the real DVC, MLflow and Prefect, on a few small drawn images."""

import base64
import io
import json
import os
import re
import shutil
import signal
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

pytestmark = pytest.mark.slow(15)


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
