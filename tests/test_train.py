import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from two_datasets import PARAMS

from pipeline import embed, inference, train
from pipeline.classifier import Classifier
from pipeline.decision import choose_threshold
from pipeline.metrics import log_loss, scores
from pipeline.params import Params
from pipeline.train import mosaics_of, rows_of, validation_scores
from pipeline.training_images import side_of


@pytest.fixture(scope="module")
def trained(two_datasets, tmp_path_factory):
    """A probe on cached features, trained by the stage itself without a tracking store."""
    folder = tmp_path_factory.mktemp("trained")
    params = Params.model_validate(PARAMS)
    epochs = []
    manifest = pd.read_parquet(two_datasets.manifest)
    embed.run(params.backbones["small"], manifest, two_datasets.datasets, folder / "embedding", folder / "features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "live_run", lambda *_: nullcontext(lambda step, values: epochs.append(step)))
        train.run(
            params,
            "probe",
            datasets=two_datasets.datasets,
            manifest_path=two_datasets.manifest,
            features=folder / "features",
            checkpoints=folder / "checkpoints",
            out=folder / "model",
            scores_path=folder / "scores.json",
            history_path=folder / "history.csv",
        )
    validation = side_of(pd.read_parquet(two_datasets.manifest), "validation", two_datasets.datasets)
    return SimpleNamespace(
        folder=folder,
        epochs=epochs,
        scores=json.loads((folder / "scores.json").read_text()),
        classifier=Classifier.load(folder / "model"),
        validation=validation,
    )


@pytest.mark.slow
def test_the_exported_graph_has_the_scores_that_training_wrote(trained):
    labels = trained.validation.labels
    probabilities = trained.classifier.probabilities(trained.validation, progress="scoring")
    threshold = trained.classifier.decision.threshold
    loss = log_loss(labels, probabilities)
    expected = {"selection_loss": loss, "log_loss": loss, "log_loss_in_domain": loss}
    expected |= scores(labels, probabilities, threshold)
    assert {name: trained.scores[name] for name in expected} == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_the_threshold_follows_the_costs_on_validation(trained):
    probabilities = trained.classifier.probabilities(trained.validation, progress="scoring").astype(np.float64)
    expected = choose_threshold(trained.validation.labels, probabilities, Params.model_validate(PARAMS).decide)
    assert trained.classifier.decision.threshold == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_history_has_a_row_for_each_head_and_strength_which_was_also_sent_live(trained):
    history = pd.read_csv(trained.folder / "history.csv")
    assert history["step"].tolist() == trained.epochs == [0, 1, 2, 3]
    assert history["phase"].tolist() == ["ours", "ours", "theirs", "theirs"]
    assert history["strength"].tolist() == [0.1, 0.01, 0.1, 0.01]
    assert set(history) == {"step", "phase", "epoch", "strength", "loss", "val_loss", "accuracy", "val_accuracy"}


def test_candidates_are_compared_by_both_losses_weighted_where_photos_are_lent(two_datasets):
    validation = side_of(pd.read_parquet(two_datasets.manifest), "validation", two_datasets.datasets)
    settings = json.loads(json.dumps(PARAMS))
    settings["split"]["train_on"] = ["ours"]  # so that the two images of "theirs" are lent
    settings["select"]["outside_weight"] = 0.25
    probabilities = np.array([0.9, 0.1, 0.9, 0.1, 0.5, 0.5])
    found = validation_scores(validation, probabilities, 0.5, Params.model_validate(settings))
    assert found["log_loss_in_domain"] == pytest.approx(-np.log(0.9))
    assert found["log_loss_outside"] == pytest.approx(np.log(2))
    assert found["selection_loss"] == pytest.approx(0.75 * -np.log(0.9) + 0.25 * np.log(2))


def test_mosaics_are_composed_of_the_chosen_training_images_alone(two_datasets, monkeypatch):
    train_side = side_of(pd.read_parquet(two_datasets.manifest), "train", two_datasets.datasets)
    seen = []
    monkeypatch.setattr(train_side, "pixels", lambda position: seen.append(position) or np.zeros((40, 40, 3), np.uint8))
    chosen = np.arange(1, len(train_side) - 1)
    wanted = Params.model_validate(PARAMS).candidates["probe"].mosaics
    mosaics = mosaics_of(train_side, chosen, chosen // 2 % 3, wanted, 32, seed=0)
    assert len(mosaics.labels) == 2 * 12
    assert seen == chosen.tolist()


@pytest.mark.slow
def test_each_head_learns_from_its_data_set_and_from_the_mosaics_and_turned_images_that_params_ask_for(
    two_datasets, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.traces.trace", lambda pixels, size_px: np.eye(size_px, dtype=bool))
    train_side = side_of(pd.read_parquet(two_datasets.manifest), "train", two_datasets.datasets)
    settings = json.loads(json.dumps(PARAMS))
    settings["candidates"]["probe"]["turn"] = ["theirs"]
    settings["candidates"]["probe"]["traced"] = {"of": ["ours"], "cells_a_side": [2], "n_images": 12}
    params = Params.model_validate(settings)
    backbone = params.backbones["small"]
    manifest = pd.read_parquet(two_datasets.manifest)
    embed.run(backbone, manifest, two_datasets.datasets, tmp_path / "unfinished", tmp_path / "features")
    real, precisions = inference.Embedder.features, set()

    def watched(self, images, *, for_training):
        precisions.add(for_training)
        return real(self, images, for_training=for_training)

    monkeypatch.setattr(inference.Embedder, "features", watched)
    rows = rows_of(backbone, params.candidates["probe"], train_side, tmp_path / "features", tmp_path / "more")
    assert precisions == {True}
    sizes = train_side.rows["dataset"].value_counts()
    assert list(rows) == ["ours", "ours, traced", "theirs"]
    ours, traced, theirs = rows.values()
    assert pd.Series(ours.sources).value_counts().to_dict() == {"ours": sizes["ours"], "mosaics": 24}
    assert pd.Series(traced.sources).value_counts().to_dict() == {"ours": sizes["ours"], "traced": 12}
    assert not np.array_equal(traced.features[-12:], ours.features[-12:])
    assert pd.Series(theirs.sources).value_counts().to_dict() == {"theirs": 8 * sizes["theirs"]}
    labels = train_side.labels[(train_side.rows["dataset"] == "theirs").to_numpy()]
    np.testing.assert_array_equal(theirs.labels, np.tile(labels, 8))
    np.testing.assert_array_equal(theirs.folds, np.tile(theirs.folds[: len(labels)], 8))
    plain = theirs.features[: len(labels)].astype(float)
    for turned in np.split(theirs.features.astype(float), 8)[1:]:
        assert 0 < np.abs(turned - plain).mean() < 0.5 * plain.std()  # the same image, seen from another side


@pytest.mark.slow
def test_nothing_unfinished_is_left_after_a_training(trained):
    assert list((trained.folder / "checkpoints").iterdir()) == []
    assert sorted(path.name for path in (trained.folder / "model").iterdir()) == ["decision.json", "model.keras"]
    assert not list(trained.folder.rglob("*.partial"))
