"""The stage `report`, on what `evaluate` leaves."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from packed_greys import write_greys

from pipeline.data.images import INVENTORY_FILE, QUARANTINE_FILE
from pipeline.evaluation.bootstrap import scores_with_intervals
from pipeline.evaluation.slices import slice_table
from pipeline.evaluation.unseen_sources import summarise_sources
from pipeline.models.decision import Decision
from pipeline.models.metrics import scores
from pipeline.params import Dataset
from pipeline.report import read_slices, run
from pipeline.safe_text import cells

LEVELS = {"ours": [0, 50, 200, 230], "bridge": [60, 190, 210]}
PREDICTIONS = pd.DataFrame(
    {
        "dataset": ["ours"] * 4 + ["bridge"] * 3,
        "row": [0, 1, 2, 3, 0, 1, 2],
        "split": ["test"] * 4 + ["external"] * 3,
        "label": ["crack", "crack", "intact", "intact", "crack", "intact", "crack"],
        "probability": [0.9, 0.8, 0.2, 0.1, 0.7, 0.2, 0.3],
        "slice": "",
        "photo": ["1", "2", "NA", "4", "1", "2", "NA"],
        "brightness": [0, 50, 200, 230, 60, 190, 210],
        "sharpness": 1.0,
        "size": 14,
    }
)
PREDICTIONS["path"] = [f"{level}.png" for levels in LEVELS.values() for level in levels]
PREDICTIONS["group"] = PREDICTIONS["dataset"] + PREDICTIONS["path"]
PARAMS = SimpleNamespace(
    split=SimpleNamespace(train_on=("ours",)),
    candidates={name: SimpleNamespace(backbone="dark") for name in ("worse", "better")},
    backbones={"dark": SimpleNamespace(architecture="mobilenet-v2")},
    datasets={name: Dataset(source="walls.zip") for name in LEVELS},
)
DECISION = Decision(threshold=0.5, review_from=0.4, review_to=0.6)
SPLIT = {"n_images": 9, "n_groups": 8, "n_copies": 1, "n_excluded": 0, "leaks": 0}
LEAKING = dict.fromkeys(
    ["n_available", "n_images", "n_scored", "leak_free_n_errors", "random_n_errors", "n_scored_with_copy_in_train"], 4
) | dict.fromkeys(["leak_free_errors_per_thousand", "leak_free_f1", "random_errors_per_thousand", "random_f1"], 0.5)


def score(rows):
    labels, probabilities = (rows["label"] == "crack").to_numpy(), rows["probability"].to_numpy()
    return scores_with_intervals(labels, probabilities, rows["group"].to_numpy(), DECISION) | scores(
        labels, probabilities, 0.5
    )


def write_results_of_evaluate(folder, encode):
    for name, levels in LEVELS.items():
        (folder / "datasets").mkdir(exist_ok=True)
        write_greys(folder / "datasets" / name, levels, encode)
        inventory = pd.read_parquet(folder / "datasets" / name / INVENTORY_FILE)
        inventory.assign(path=[f"{level}.png" for level in levels]).to_parquet(
            folder / "datasets" / name / INVENTORY_FILE
        )
        (folder / "datasets" / name / QUARANTINE_FILE).write_text("batch,path,reason,is_image\n")
    PREDICTIONS.to_parquet(folder / "manifest.parquet")
    PREDICTIONS.to_parquet(folder / "predictions.parquet")
    PREDICTIONS.tail(1).assign(occlusion_map=[np.arange(49.0)]).to_parquet(folder / "mistakes.parquet")
    slice_table(PREDICTIONS, DECISION).to_csv(folder / "slices.csv", index=False)
    (test, external) = (PREDICTIONS[PREDICTIONS["split"] == split] for split in ("test", "external"))
    summary = {
        "demo": False,
        "trained_on": ["ours"],
        "candidate": "better",
        "split": SPLIT,
        "test": score(test),
        "tests": {"ours": score(test)},
        "external": {"bridge": score(external)},
        "sources": summarise_sources({"scores": {}, "not_measured": {}}, {"bridge": score(external)}),
        "decision": DECISION.as_dict(),
        "leakage": LEAKING,
    }
    (folder / "scores.json").write_text(json.dumps(summary))
    layer = {"name": "a layer", "type": "Dense", "shape": [None, 4], "n_weights": 3, "layers": []}
    (folder / "architecture.json").write_text(json.dumps([layer]))
    for name in ("candidates", "histories"):
        (folder / name).mkdir()
    for name in PARAMS.candidates:
        (folder / "candidates" / f"{name}.json").write_text(json.dumps({"selection_loss": 0.1, **score(test)}))
        history = {"step": 0, "phase": "head", "epoch": 0, "loss": 1, "val_loss": 1, "accuracy": 1, "val_accuracy": 1}
        pd.DataFrame([history]).to_csv(folder / "histories" / f"{name}.csv", index=False)


@pytest.fixture(scope="module")
def reported(tmp_path_factory, encode):
    folder = tmp_path_factory.mktemp("reported")
    write_results_of_evaluate(folder, encode)
    run(
        PARAMS,
        datasets=folder / "datasets",
        manifest=folder / "manifest.parquet",
        candidates=folder / "candidates",
        histories=folder / "histories",
        scores=folder / "scores.json",
        slices=folder / "slices.csv",
        predictions=folder / "predictions.parquet",
        mistakes=folder / "mistakes.parquet",
        architecture=folder / "architecture.json",
        plots=folder / "plots",
        page=folder / "report.html",
    )
    return folder


def test_the_stage_leaves_tables_for_plots_and_a_page_that_names_the_candidate(reported):
    assert sorted(path.name for path in (reported / "plots").iterdir()) == [
        "confusion.csv",
        "precision_recall.csv",
        "reliability.csv",
        "roc.csv",
        "training.csv",
    ]
    assert "better" in (reported / "report.html").read_text()
    assert len(pd.read_csv(reported / "plots" / "confusion.csv")) == 4  # of test alone
    assert set(pd.read_csv(reported / "plots" / "training.csv")["candidate"]) == {"worse", "better"}


def test_the_page_shows_the_mistakes_and_the_random_predictions_of_each_set(reported):
    text = (reported / "report.html").read_text()
    assert 'alt="Missed crack: 210.png of bridge"' in text
    assert 'alt="Occlusion map of 210.png of bridge"' in text
    assert all(f'alt="Right: {level}.png of ours"' in text for level in (0, 50, 200, 230))
    assert text.count("<h3>Test: missed cracks</h3>\n<p>None.</p>") == 1
    assert "a layer" in text
    assert "doi" not in text


@pytest.mark.parametrize("photos", [["1", "2", "NA", "4"], ["1", "2", "3", "4"], ["=1", "-2", "'@3", "4"]])
def test_slices_are_read_as_they_were_written_whatever_photos_are_called(tmp_path, photos):
    several = pd.concat([PREDICTIONS[PREDICTIONS["split"] == "test"].assign(photo=photos)] * 30, ignore_index=True)
    several["group"] = [f"g{row // 4}" for row in several.index]
    table = slice_table(several, DECISION)
    assert {*photos} <= set(table["slice"])
    cells(table).to_csv(tmp_path / "slices.csv", index=False)
    pd.testing.assert_frame_equal(read_slices(tmp_path / "slices.csv"), table, check_exact=True, check_dtype=False)


def test_the_report_needs_no_tensorflow():
    code = "import sys, pipeline.report; print({'tensorflow', 'keras', 'mlflow'} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "set()\n"
