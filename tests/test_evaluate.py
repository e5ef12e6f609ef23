import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipeline.data.images import IMAGES_FILE, INVENTORY_FILE, QUARANTINE_FILE
from pipeline.data.training_images import training_rows
from pipeline.evaluate import run, summarise
from pipeline.evaluation.bootstrap import SCORES as BOOTSTRAPPED
from pipeline.evaluation.candidate_choice import best_candidate
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.classifier import Classifier
from pipeline.models.decision import Decision
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras
from pipeline.registry.runs import flatten
from pipeline.training.features import features_file, rows_file

SPLIT = {"n_images": 9, "n_groups": 8, "n_copies": 1, "n_excluded": 0, "leaks": 0}
DECISION = Decision(threshold=0.5, review_from=0.4, review_to=0.6)
NONE_LEFT_OUT = {"scores": {}, "not_measured": {}}
PARAMS = SimpleNamespace(is_demo=False, split=SimpleNamespace(train_on=("ours",)))
SCORES = {"n", "accuracy", "f1", "auroc", "balanced_accuracy", "ece", "threshold"}


def predictions(*rows):
    """A table of (dataset, split, label, probability)."""
    table = pd.DataFrame(rows, columns=["dataset", "split", "label", "probability"])
    rows = np.arange(len(table))
    return table.assign(row=rows, path=[f"{row}.png" for row in rows], group=[f"g{row}" for row in rows])


def write_dataset(folder, contents, size):
    """Write a data set as `ingest` leaves it."""
    folder.mkdir(parents=True)
    (folder / IMAGES_FILE).write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    offsets = np.cumsum([0, *lengths[:-1]])
    table = pd.DataFrame({"height": size, "width": size, "offset": offsets, "n_bytes": lengths, "sharpness": 1.0})
    table = table.assign(path=[f"{row}.png" for row in table.index], brightness=table.index * 1.0)
    table.to_parquet(folder / INVENTORY_FILE)
    (folder / QUARANTINE_FILE).write_text("batch,path,reason,is_image\n")


def grey(level):
    return np.full((8, 8, 3), level, np.uint8)


def save_classifier(folder):
    """Save a model that takes dark for cracked: probability 0.5 at the mean of ImageNet, less the lighter it is."""
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), -1.0), np.zeros(1)])
    folder.mkdir(parents=True)
    calibrated(classifier, Calibration((Platt(1.0, 0.0),))).save(folder / "model.keras")
    (folder / "decision.json").write_text(json.dumps(DECISION.as_dict()))


def test_the_best_candidate_has_the_lowest_selection_loss_whatever_its_other_scores(tmp_path):
    losses = {"a": 0.3, "b": 0.1, "c": 0.2}
    for name, loss in losses.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"selection_loss": loss, "log_loss": -loss, "f1": loss}))
    assert best_candidate(tmp_path, losses) == "b"


def test_the_first_by_name_of_equal_candidates_is_chosen(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"selection_loss": 0.1}))
    assert best_candidate(tmp_path, ("b", "a")) == "a"


def test_metrics_have_exactly_the_documented_keys():
    rows = [
        ("ours", "test", "crack", 0.9),
        ("ours", "test", "intact", 0.6),
        ("second", "test", "crack", 0.7),
        ("bridge", "external", "crack", 0.1),
        ("tunnel", "external", "intact", 0.1),
        ("tunnel", "external", "crack", 0.8),
    ]
    metrics = summarise(PARAMS, "probe", SPLIT, predictions(*rows), DECISION, NONE_LEFT_OUT)
    expected = ["demo", "trained_on", "candidate", "split", "test", "tests", "external", "sources", "decision"]
    assert list(metrics) == expected
    assert (metrics["demo"], metrics["trained_on"], metrics["candidate"]) == (False, ["ours"], "probe")
    assert metrics["split"] == SPLIT
    counts = {name: {key: scores["n"] for key, scores in metrics[name].items()} for name in ("tests", "external")}
    assert counts == {"tests": {"ours": 2, "second": 1}, "external": {"bridge": 1, "tunnel": 2}}
    assert metrics["test"]["n"] == 3
    assert metrics["test"]["f1"] == pytest.approx(4 / 5)
    assert metrics["external"]["tunnel"]["auroc"] == 1
    assert metrics["external"]["bridge"]["auroc"] is None
    for scores in (metrics["test"], *metrics["tests"].values(), *metrics["external"].values()):
        assert set(scores) == SCORES | {"n_groups", "prevalence", "interval"} | set(BOOTSTRAPPED)
    assert json.loads(json.dumps(metrics)) == metrics


def test_only_numbers_go_to_mlflow_and_an_interval_contains_its_score():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(60) < 0.5, "crack", "intact")
    table = predictions(*[("ours", "test", label, rng.random()) for label in labels])
    metrics = summarise(PARAMS, "probe", SPLIT, table, DECISION, NONE_LEFT_OUT)
    values = flatten({name: metrics[name] for name in ("split", "test", "tests", "external")})
    assert all(type(value) in (int, float) for value in values.values())
    assert set(metrics["test"]["interval"]) == set(BOOTSTRAPPED)
    for name in BOOTSTRAPPED:
        low, value, high = (
            values[key] for key in (f"test.interval.{name}.low", f"test.{name}", f"test.interval.{name}.high")
        )
        assert low < high
        assert low <= value <= high or "ece" in name  # resampling adds noise to the bins, which can only raise ECE


def test_groups_and_not_images_are_resampled():
    rng = np.random.default_rng(0)
    table = predictions(*(("ours", "test", "crack", value) for value in rng.random(50)))
    assert any(summarise(PARAMS, "probe", SPLIT, table, DECISION, NONE_LEFT_OUT)["test"]["interval"].values())
    of_one_photo = summarise(PARAMS, "probe", SPLIT, table.assign(group="one photo"), DECISION, NONE_LEFT_OUT)
    assert not any(of_one_photo["test"]["interval"].values())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, encode):
    """The stage run on twelve drawn greys; the better candidate, whose model alone exists, takes dark for cracked."""
    folder = tmp_path_factory.mktemp("evaluated")
    levels = {"ours": [0, 50, 200, 230, 10, 240, 245, 20, 235], "bridge": [60, 190, 210]}
    labels = {"ours": "crack crack intact intact crack crack intact crack intact", "bridge": "crack intact crack"}
    sides = ["test"] * 4 + ["train", "excluded", "train"] + ["validation"] * 2
    splits = {"ours": sides, "bridge": ["external"] * 3}
    tables = []
    for name, greys in levels.items():
        write_dataset(folder / "datasets" / name, [encode(grey(level), "PNG") for level in greys], 8)
        table = pd.DataFrame({"split": splits[name], "label": labels[name].split(), "row": range(len(greys))})
        table = table.assign(dataset=name, path=[f"{level}.png" for level in greys], slice="", photo=None)
        tables.append(table.assign(group=[f"{name}/{row}" for row in table["row"]]))
    manifest = pd.concat(tables)
    manifest.to_parquet(folder / "manifest.parquet")
    (folder / "features" / "dark").mkdir(parents=True)
    for name, sides in training_rows(manifest).items():
        rows = sides.rows
        np.save(features_file(folder / "features" / "dark", name), np.array(levels[name], np.float32)[rows, None])
        np.save(rows_file(folder / "features" / "dark", name), rows)
    (folder / "split.json").write_text(json.dumps(SPLIT))
    for name, log_loss in (("worse", 0.4), ("better", 0.2)):
        scores = {"selection_loss": log_loss, **dict.fromkeys(SCORES, 0.5), "n": 4}
        (folder / "candidates").mkdir(exist_ok=True)
        (folder / "candidates" / f"{name}.json").write_text(json.dumps(scores))
    left_out = {"n": 40, "prevalence": 0.5, "n_groups": 9, **dict.fromkeys(BOOTSTRAPPED, 0.5), "auroc": 0.8}
    (folder / "sources.json").write_text(json.dumps({"scores": {"ours/Walls": left_out}, "not_measured": {}}))
    save_classifier(folder / "models" / "better")
    run(
        SimpleNamespace(
            **vars(PARAMS),
            candidates={name: SimpleNamespace(backbone="dark") for name in ("worse", "better")},
        ),
        datasets=folder / "datasets",
        manifest=folder / "manifest.parquet",
        split=folder / "split.json",
        features=folder / "features",
        models=folder / "models",
        candidates=folder / "candidates",
        sources=folder / "sources.json",
        scores=folder / "scores.json",
        metrics=folder / "metrics.json",
        external_metrics=folder / "external",
        slices=folder / "slices.csv",
        predictions=folder / "predictions.parquet",
        mistakes=folder / "mistakes.parquet",
        architecture=folder / "architecture.json",
    )
    return folder


def test_the_best_candidate_is_scored_on_test_and_external(evaluated):
    scores = json.loads((evaluated / "scores.json").read_text())
    assert scores["candidate"] == "better"
    assert (scores["test"]["n"], scores["test"]["accuracy"]) == (4, 1)
    assert scores["external"]["bridge"]["accuracy"] == pytest.approx(2 / 3)
    assert scores["test"]["threshold"] == 0.5
    sources = scores["sources"]
    assert (sources["worst"], sources["mean"]["auroc"]) == ("ours/Walls", 0.8)
    assert sources["not_measured"]["bridge"].startswith("2 cracked and 1 intact images of 3 photos or groups")


def test_predictions_have_the_probability_of_every_image_of_test_and_external(evaluated):
    table = pd.read_parquet(evaluated / "predictions.parquet")
    assert table["path"].tolist() == ["0.png", "50.png", "200.png", "230.png", "60.png", "190.png", "210.png"]
    batches = [grey(int(path.removesuffix(".png")))[None] for path in table["path"]]
    model = Classifier.load(evaluated / "models" / "better").model
    np.testing.assert_allclose(table["probability"], [model(batch)["probability"][0] for batch in batches], atol=1e-6)


def test_dvc_gets_the_headline_of_test_and_of_each_external_test_set_and_nothing_else(evaluated):
    scores = json.loads((evaluated / "scores.json").read_text())
    metrics = json.loads((evaluated / "metrics.json").read_text())
    names = ["n", "f1", "auroc", "balanced_accuracy", "ece", "threshold"]
    assert metrics == {**{name: scores["test"][name] for name in names}, "leaks": 0}
    (bridge,) = (evaluated / "external").iterdir()
    assert bridge.name == "bridge.json"
    external = scores["external"]["bridge"]
    assert json.loads(bridge.read_text()) == {name: external[name] for name in ("auroc", "balanced_accuracy")}


def test_slices_are_a_tidy_table_that_begins_with_the_whole_of_test(evaluated):
    table = pd.read_csv(evaluated / "slices.csv")
    assert list(table)[:9] == [
        "set",
        "kind",
        "slice",
        "n",
        "n_groups",
        "prevalence",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
    ]
    assert table.iloc[0].tolist()[:6] == ["test", "all", "all", 4, 4, 0.5]
    assert set(table["set"]) == {"test", "test:ours", "external:bridge"}
    assert not table.duplicated(["set", "kind", "slice"]).any()


def test_leakage_is_measured_on_the_data_sets_trained_on(evaluated):
    leakage = json.loads((evaluated / "scores.json").read_text())["leakage"]
    assert (leakage["n_available"], leakage["n_scored"]) == (4, 2)
    assert leakage["leak_free_f1"] == 1


def test_the_report_shows_decision_layers_and_occlusion_maps_without_a_model(evaluated):
    decision = json.loads((evaluated / "scores.json").read_text())["decision"]
    assert decision == {"threshold": 0.5, "review_from": 0.4, "review_to": 0.6}
    layers = json.loads((evaluated / "architecture.json").read_text())
    assert [layer["name"] for layer in layers[-2:]] == ["calibration", "probability"]
    mistakes = pd.read_parquet(evaluated / "mistakes.parquet")
    assert mistakes[["dataset", "path", "split"]].to_numpy().tolist() == [["bridge", "210.png", "external"]]
    assert mistakes["occlusion_map"].map(len).tolist() == [49]
