import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipeline.classifier import Classifier
from pipeline.decision import Decision
from pipeline.evaluate import (
    MAX_CURVE_POINTS,
    N_PICTURES_A_KIND,
    best_candidate,
    curves,
    run,
    summarise,
    worst_mistakes,
)
from pipeline.images import IMAGES_FILE, INVENTORY_FILE
from pipeline.network import build_classifier, calibrated
from pipeline.tf import keras

SPLIT = {"n_images": 9, "n_groups": 8, "n_copies": 1, "n_excluded": 0, "leaks": 0}
PARAMS = SimpleNamespace(is_demo=False, split=SimpleNamespace(train_on=("ours",)))
SCORES = {"n", "accuracy", "f1", "auroc", "balanced_accuracy", "ece", "threshold"}


def predictions(*rows):
    """A table of (dataset, split, label, probability)."""
    table = pd.DataFrame(rows, columns=["dataset", "split", "label", "probability"])
    return table.assign(row=np.arange(len(table)), path=[f"{row}.png" for row in range(len(table))])


def write_dataset(folder, contents, size):
    """Write a data set as `ingest` leaves it."""
    folder.mkdir(parents=True)
    (folder / IMAGES_FILE).write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    offsets = np.cumsum([0, *lengths[:-1]])
    table = pd.DataFrame({"height": size, "width": size, "offset": offsets, "n_bytes": lengths})
    table.to_parquet(folder / INVENTORY_FILE)


def grey(level):
    return np.full((8, 8, 3), level, np.uint8)


def save_classifier(folder):
    """Save a model that takes dark for cracked: probability 0.5 at the mean of ImageNet, less the lighter it is."""
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), -1.0), np.zeros(1)])
    folder.mkdir(parents=True)
    calibrated(classifier, 1.0, 0.0).save(folder / "model.keras")
    decision = Decision(threshold=0.5, review_from=0.4, review_to=0.6)
    (folder / "decision.json").write_text(json.dumps(decision.as_dict()))


def test_the_best_candidate_has_the_lowest_log_loss_whatever_its_other_scores():
    candidates = {"a": {"log_loss": 0.3, "f1": 1.0}, "b": {"log_loss": 0.1, "f1": 0.5}, "c": {"log_loss": 0.2, "f1": 1}}
    assert best_candidate(candidates) == "b"


def test_of_equal_candidates_the_first_by_name_is_taken():
    assert best_candidate({"b": {"log_loss": 0.1}, "a": {"log_loss": 0.1}}) == "a"


def test_metrics_have_exactly_the_documented_keys():
    rows = [
        ("ours", "test", "crack", 0.9),
        ("ours", "test", "intact", 0.6),
        ("second", "test", "crack", 0.7),
        ("bridge", "outside", "crack", 0.1),
        ("tunnel", "outside", "intact", 0.1),
        ("tunnel", "outside", "crack", 0.8),
    ]
    metrics = summarise(PARAMS, "probe", SPLIT, predictions(*rows), 0.5)
    assert list(metrics) == ["demo", "trained_on", "candidate", "split", "test", "tests", "outside"]
    assert (metrics["demo"], metrics["trained_on"], metrics["candidate"]) == (False, ["ours"], "probe")
    assert metrics["split"] == SPLIT
    counts = {name: {key: scores["n"] for key, scores in metrics[name].items()} for name in ("tests", "outside")}
    assert counts == {"tests": {"ours": 2, "second": 1}, "outside": {"bridge": 1, "tunnel": 2}}
    assert metrics["test"]["n"] == 3
    assert metrics["test"]["f1"] == pytest.approx(4 / 5)
    assert metrics["outside"]["tunnel"]["auroc"] == 1
    assert metrics["outside"]["bridge"]["auroc"] is None
    for scores in (metrics["test"], *metrics["tests"].values(), *metrics["outside"].values()):
        assert set(scores) == SCORES
    assert json.loads(json.dumps(metrics)) == metrics


def test_the_worst_mistakes_on_test_come_first_and_each_with_its_own_picture(tmp_path, encode):
    rows = [
        ("ours", "test", "crack", 0.4),
        ("ours", "test", "crack", 0.1),
        ("ours", "test", "crack", 0.5),  # at the threshold: found
        ("ours", "test", "intact", 0.6),
        ("ours", "test", "intact", 0.9),
        ("ours", "test", "intact", 0.2),
        ("ours", "outside", "crack", 0.0),
        ("ours", "outside", "intact", 1.0),
    ]
    write_dataset(tmp_path / "ours", [encode(grey(20 * row), "PNG") for row in range(len(rows))], 8)
    pictures = worst_mistakes(predictions(*rows), 0.5, tmp_path)
    assert [(picture.path, picture.label, picture.probability) for picture in pictures] == [
        ("1.png", "crack", 0.1),
        ("0.png", "crack", 0.4),
        ("4.png", "intact", 0.9),
        ("3.png", "intact", 0.6),
    ]
    assert [int(picture.pixels.max()) for picture in pictures] == [20, 0, 80, 60]


def test_of_many_mistakes_a_page_full_of_each_kind_is_shown(tmp_path, encode):
    n = N_PICTURES_A_KIND + 3
    rows = [("ours", "test", "crack", 0.01 * k) for k in range(n)] + [("ours", "test", "intact", 0.9)] * n
    write_dataset(tmp_path / "ours", [encode(grey(0), "PNG")] * len(rows), 8)
    pictures = worst_mistakes(predictions(*rows), 0.5, tmp_path)
    assert [picture.label for picture in pictures] == ["crack"] * N_PICTURES_A_KIND + ["intact"] * N_PICTURES_A_KIND
    assert pictures[N_PICTURES_A_KIND - 1].probability == pytest.approx(0.01 * (N_PICTURES_A_KIND - 1))


def test_a_model_without_mistakes_has_no_pictures(tmp_path):
    assert worst_mistakes(predictions(("ours", "test", "crack", 0.9)), 0.5, tmp_path) == []


def test_curves_are_those_of_test_alone_worked_by_hand():
    rows = [
        ("ours", "test", "crack", 0.9),
        ("ours", "test", "intact", 0.7),
        ("ours", "test", "crack", 0.5),
        ("ours", "test", "intact", 0.1),
        ("bridge", "outside", "crack", 0.0),
    ]
    drawn = curves(predictions(*rows), 0.5)
    assert drawn.roc.to_numpy().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert drawn.precision_recall.to_numpy().tolist() == [[1, 0.5], [1, 2 / 3], [0.5, 0.5], [0.5, 1], [0, 1]]
    assert drawn.confusion.to_numpy().tolist() == [
        ["crack", "crack"],
        ["intact", "crack"],
        ["crack", "crack"],
        ["intact", "intact"],
    ]


def test_long_curves_are_thinned_but_keep_their_ends(tmp_path):
    rng = np.random.default_rng(0)
    rows = [("ours", "test", "crack" if rng.random() < 0.5 else "intact", rng.random()) for _ in range(3000)]
    drawn = curves(predictions(*rows), 0.5)
    drawn.write(tmp_path)
    roc = pd.read_csv(tmp_path / "roc.csv")
    assert list(roc) == ["fpr", "tpr"]
    assert len(roc) == len(drawn.precision_recall) == MAX_CURVE_POINTS
    assert (roc.iloc[0].tolist(), roc.iloc[-1].tolist()) == ([0, 0], [1, 1])
    assert len(pd.read_csv(tmp_path / "confusion.csv")) == 3000


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, encode):
    """The stage run on nine drawn greys; the better candidate, whose model alone exists, takes dark for cracked."""
    folder = tmp_path_factory.mktemp("evaluated")
    levels = {"ours": [0, 50, 200, 230, 10, 240], "bridge": [60, 190, 210]}
    labels = {"ours": "crack crack intact intact crack crack", "bridge": "crack intact crack"}
    splits = {"ours": ["test"] * 4 + ["train", "excluded"], "bridge": ["outside"] * 3}
    tables = []
    for name, greys in levels.items():
        write_dataset(folder / "datasets" / name, [encode(grey(level), "PNG") for level in greys], 8)
        table = pd.DataFrame({"split": splits[name], "label": labels[name].split(), "row": range(len(greys))})
        tables.append(table.assign(dataset=name, path=[f"{level}.png" for level in greys]))
    pd.concat(tables).to_parquet(folder / "manifest.parquet")
    (folder / "split.json").write_text(json.dumps(SPLIT))
    for name, log_loss in (("worse", 0.4), ("better", 0.2)):
        scores = {"log_loss": log_loss, **dict.fromkeys(SCORES, 0.5), "n": 4}
        (folder / "candidates").mkdir(exist_ok=True)
        (folder / "candidates" / f"{name}.json").write_text(json.dumps(scores))
        (folder / "histories").mkdir(exist_ok=True)
        history = {"step": 0, "phase": "head", "epoch": 0, "loss": 1, "val_loss": 1, "accuracy": 1, "val_accuracy": 1}
        pd.DataFrame([history]).to_csv(folder / "histories" / f"{name}.csv", index=False)
    save_classifier(folder / "models" / "better")
    run(
        SimpleNamespace(**vars(PARAMS), candidates={"worse": None, "better": None}),
        datasets=folder / "datasets",
        manifest_path=folder / "manifest.parquet",
        split_path=folder / "split.json",
        models=folder / "models",
        candidates_folder=folder / "candidates",
        histories_folder=folder / "histories",
        metrics_path=folder / "metrics.json",
        predictions_path=folder / "predictions.parquet",
        plots=folder / "plots",
        report_path=folder / "report.html",
    )
    return folder


def test_the_best_candidate_is_scored_on_test_and_outside(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert metrics["candidate"] == "better"
    assert (metrics["test"]["n"], metrics["test"]["accuracy"]) == (4, 1)
    assert metrics["outside"]["bridge"]["accuracy"] == pytest.approx(2 / 3)
    assert metrics["test"]["threshold"] == 0.5


def test_predictions_have_the_probability_of_every_image_of_test_and_outside(evaluated):
    table = pd.read_parquet(evaluated / "predictions.parquet")
    assert table["path"].tolist() == ["0.png", "50.png", "200.png", "230.png", "60.png", "190.png", "210.png"]
    batches = [grey(int(path.removesuffix(".png")))[None] for path in table["path"]]
    model = Classifier.load(evaluated / "models" / "better").model
    np.testing.assert_allclose(table["probability"], [model(batch)["probability"][0] for batch in batches], atol=1e-6)


def test_the_stage_leaves_curves_and_a_report_that_names_the_candidate(evaluated):
    assert sorted(path.name for path in (evaluated / "plots").iterdir()) == [
        "confusion.csv",
        "precision_recall.csv",
        "roc.csv",
    ]
    assert "better" in (evaluated / "report.html").read_text()
