import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from page_reader import Page
from registry import make_registry, write_graph
from test_drift import photos

from pipeline.errors import CracksError
from pipeline.monitoring import drift_check
from pipeline.monitoring.labelling import export, most_worth_labelling
from pipeline.monitoring.monitored_model import MonitoredModel
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import load_params
from pipeline.project import LOG_FOLDER
from pipeline.reference import choose_images

PARAMS = load_params(Path(__file__).parent.parent / "params.yaml")
MONDAY = datetime(2026, 3, 2, 12, tzinfo=UTC)
WEEK = timedelta(days=7.5)  # of the four windows a month


def logged(tiles, time, version="7"):
    """Tiles as rows of the prediction log."""
    return tiles.assign(
        time=pd.Timestamp(time), model_version=version, source="predict", probability=np.linspace(0, 1, len(tiles))
    )


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose production, version 7, was trained on 40 photos of walls; nothing is sent anywhere."""
    reference = photos(0, 40).assign(dataset="walls")
    monkeypatch.setattr(drift_check, "monitored_model", lambda name: MonitoredModel("7", reference, 0.5))
    monkeypatch.delenv("CRACKS_NOTIFY_URL", raising=False)
    return tmp_path


@pytest.fixture
def told(monkeypatch):
    """The messages that were sent."""
    messages = []
    monkeypatch.setattr(drift_check, "notify", lambda title, lines: messages.append((title, lines)) or True)
    return messages


def see(root, tiles, time, version="7"):
    PredictionLog(root / LOG_FOLDER).append(logged(tiles, time, version))


def test_a_window_that_a_clock_closed_in_the_future_holds_up_no_later_one(root, told):
    see(root, photos(1, 6), MONDAY)
    assert drift_check.run(PARAMS, root, MONDAY + timedelta(days=365)).verdict == "no drift"
    see(root, photos(2, 6), MONDAY + timedelta(days=1))
    assert drift_check.run(PARAMS, root, MONDAY + WEEK).verdict == "no drift"
    assert drift_check.run(PARAMS, root, MONDAY + WEEK + timedelta(days=1)).verdict == "too early"


def test_photos_like_those_trained_on_are_no_drift_and_cause_no_alert(root, told):
    see(root, photos(1, 6), MONDAY)
    finding = drift_check.run(PARAMS, root, MONDAY + WEEK)
    assert (finding.verdict, finding.dataset, told) == ("no drift", "walls", [])
    assert "No drift" in Page((root / "reports" / "drift.html").read_text(encoding="utf-8")).text


def test_one_alert_is_sent_while_drift_lasts_with_images_to_label(root, told):
    for week, (seed, shift) in enumerate([(1, 5), (2, 5), (5, 0), (4, 5)]):
        see(root, photos(seed, 6, shift=shift), MONDAY + week * WEEK)
        drift_check.run(PARAMS, root, MONDAY + (week + 1) * WEEK)
    kept = json.loads((root / "data" / "monitoring" / "state.json").read_text())["windows"]
    assert [window["verdict"] for window in kept] == ["drift", "drift", "no drift", "drift"]
    assert len(told) == 2
    title, lines = told[0]
    assert title.startswith("Drift")
    assert "brightness" in lines[0]
    assert len(pd.read_csv(root / "data" / "monitoring" / "to-label" / "list.csv")) == 72
    assert str(root / "reports" / "drift.html") in lines[-1]


def test_an_undelivered_drift_alert_is_sent_with_the_next_window(root, monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr(drift_check, "notify", lambda title, lines: next(answers))
    for week in (0, 1, 2):
        see(root, photos(week, 6, shift=5), MONDAY + week * WEEK)
        drift_check.run(PARAMS, root, MONDAY + (week + 1) * WEEK)
    assert next(answers, "both asked") == "both asked"


def test_few_photos_wait_for_the_next_check(root, told):
    see(root, photos(1, 4, shift=9), MONDAY)
    assert drift_check.run(PARAMS, root, MONDAY + WEEK).verdict == "too few photos"
    see(root, photos(2, 2, shift=9, prefix="later"), MONDAY + WEEK)
    finding = drift_check.run(PARAMS, root, MONDAY + WEEK + timedelta(hours=1))
    assert finding.verdict == "drift"
    assert finding.comparison.n_photos == 6


def test_a_window_closes_no_more_often_than_the_rate_was_stated_for(root, told):
    see(root, photos(1, 6), MONDAY)
    drift_check.run(PARAMS, root, MONDAY + WEEK)
    see(root, photos(2, 6, shift=9), MONDAY + WEEK)
    early = drift_check.run(PARAMS, root, MONDAY + 2 * WEEK - timedelta(minutes=1))
    assert early.verdict == "too early"
    assert "17 March" in early.lines[0]
    assert drift_check.run(PARAMS, root, MONDAY + 2 * WEEK).verdict == "drift"


def test_only_predictions_of_the_monitored_model_count(root, told):
    see(root, photos(1, 6, shift=9), MONDAY, version="6")
    assert drift_check.run(PARAMS, root, MONDAY + WEEK).verdict == "too few photos"


def test_photos_like_one_of_two_data_sets_are_no_drift(root, told, monkeypatch):
    both = pd.concat([photos(0, 40).assign(dataset="walls"), photos(1, 12, shift=8).assign(dataset="decks")])
    monkeypatch.setattr(drift_check, "monitored_model", lambda name: MonitoredModel("7", both, 0.5))
    see(root, photos(2, 6, shift=8), MONDAY)
    finding = drift_check.run(PARAMS, root, MONDAY + WEEK)
    assert (finding.verdict, finding.dataset) == ("no drift", "decks")


def test_a_row_for_each_statistic_and_the_plot_of_the_windows_are_there_for_prefect(root, told):
    see(root, photos(1, 6), MONDAY)
    comparison = drift_check.run(PARAMS, root, MONDAY + WEEK).comparison
    table = comparison.table()
    assert table["statistic"] == comparison.scores["statistic"].tolist()
    assert table["limit"] == [round(comparison.limit, 3)] * len(table["score"])
    assert drift_check.windows_plot_uri(root).startswith("data:image/svg+xml;base64,")


def test_the_most_worth_are_unsure_or_far_and_every_photo_gives_its_best_first():
    def embedding(value):
        return np.full(32, value, np.float32)

    log = pd.DataFrame(
        {
            "time": pd.Timestamp(MONDAY),
            "photo": ["a", "a", "b", "b"],
            "path": ["a-unsure", "a-far", "b-dull", "b-duller"],
            "probability": [0.5, 0.99, 0.9, 0.95],
            "embedding": [embedding(0.1), embedding(9), embedding(0.2), embedding(0)],
        }
    )
    log = pd.concat([log, log.iloc[[0]]], ignore_index=True)  # scored twice
    reference = pd.DataFrame({"embedding": [embedding(0), embedding(1)]})
    chosen = most_worth_labelling(log, reference, 4, threshold=0.5)
    assert chosen["path"].tolist() == ["a-far", "b-dull", "a-unsure", "b-duller"]
    assert chosen["reason"].tolist()[0] == "far from training"
    assert chosen["reason"].tolist()[2] == "unsure"
    assert chosen["distance"][0] == pytest.approx(8 * np.sqrt(32))
    assert len(most_worth_labelling(log, reference, 3, threshold=0.5)) == 3


def test_images_that_still_exist_are_copied_beside_the_list(tmp_path):
    (tmp_path / "here.jpg").write_bytes(b"image")
    chosen = pd.DataFrame({"path": [str(tmp_path / "here.jpg"), str(tmp_path / "gone.jpg"), None]})
    chosen = pd.concat([chosen, pd.DataFrame({"path": ["=gone.jpg"]})], ignore_index=True)
    assert export(chosen, tmp_path / "out") == 1
    assert (tmp_path / "out" / "0000-here.jpg").read_bytes() == b"image"
    written = pd.read_csv(tmp_path / "out" / "list.csv", keep_default_na=False)
    assert written["file"].tolist() == ["0000-here.jpg", "", "", ""]
    assert written["path"][3] == "'=gone.jpg"


def test_images_of_an_archive_are_exported_with_the_bytes_given_however_long_their_names_are(tmp_path):
    chosen = pd.DataFrame({"path": ["crack/1.jpg", f"intact/{'n' * 250}.jpg"]})
    assert export(chosen, tmp_path / "out", [b"one", b"two"]) == 2
    written = pd.read_csv(tmp_path / "out" / "list.csv")
    assert [(tmp_path / "out" / name).read_bytes() for name in written["file"]] == [b"one", b"two"]
    assert written["file"].str.len().max() == 85


def manifest(dataset, n_photos, n_tiles, *, with_photos):
    rows = [
        {"dataset": dataset, "split": "train", "path": f"{photo}-{tile}", "row": 0, "label": "crack",
         "photo": f"p{photo}" if with_photos else None, "group": f"g{photo}"}
        for photo in range(n_photos)
        for tile in range(n_tiles)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_reference_takes_evenly_of_photos_and_one_image_of_each_group_where_photos_are_not_known():
    rows = pd.concat(
        [
            manifest("decks", 9, 50, with_photos=True),
            manifest("walls", 300, 2, with_photos=False),
            manifest("external", 5, 5, with_photos=True),
        ],
        ignore_index=True,
    )
    rows.loc[rows.index[:50], "split"] = "test"  # the first photo of the decks
    chosen = choose_images(rows, ("decks", "walls"), 200)
    decks, walls = (chosen[chosen["dataset"] == name]["photo"].value_counts() for name in ("decks", "walls"))
    assert (len(decks), set(decks)) == (8, {25})
    assert (len(walls), set(walls)) == (200, {1})
    assert set(chosen["dataset"]) == {"decks", "walls"}


@pytest.mark.slow
def test_a_registered_model_carries_what_it_was_trained_on_and_its_predictions_are_monitored(project):
    """End to end: train, register, score with --log, monitor by the flow, export for labelling."""
    reference = pd.read_parquet(project.root / "data" / "reference.parquet")
    images = project.root / "seen"
    images.mkdir()
    from PIL import Image

    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(images / f"deck{number}-1.png")
    predicted = project.run(
        "cracks", "predict", "seen", "--model", "challenger", "--out", "scores.csv", "--log",
        "--photo-pattern", r"(deck\d)-\d",
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    rows = PredictionLog(project.root / LOG_FOLDER).read(model_version="1")
    assert rows["photo"].tolist() == [f"deck{number}" for number in range(8)]
    assert rows["sharpness"].min() > reference["sharpness"].max()  # noise, not concrete
    flow = project.run("python", "-m", "flows.monitoring")
    assert flow.returncode == 0, flow.stdout + flow.stderr
    assert "Finished in state Drift" in flow.stdout + flow.stderr
    assert project.json("data/monitoring/state.json")["told"] is True
    assert len(list((project.root / "data" / "monitoring" / "to-label").glob("*.png"))) == 8
    exported = project.run("cracks", "worth-labelling", "--out", "label")
    assert exported.returncode == 0, exported.stderr
    assert len(pd.read_csv(project.root / "label" / "list.csv")) == 8
    assert project.run("cracks", "worth-labelling", "--out", "label").returncode == 2


@pytest.mark.slow
def test_a_model_registered_without_its_reference_is_named_with_what_to_do(tmp_path, monkeypatch):
    from pipeline.monitoring.monitored_model import monitored_model

    monkeypatch.setenv("DVC_ROOT", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    graph = tmp_path / "graph"
    graph.mkdir()
    write_graph(graph)
    registry = make_registry(tmp_path / "project", graph, None)
    registry.client.set_registered_model_alias(registry.name, "challenger", registry.add(0.5))
    with pytest.raises(CracksError, match=r"cracks version 1 was registered without reference\.parquet.*make run"):
        monitored_model(registry.name)
