import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from two_datasets import PARAMS

from pipeline import embed, train
from pipeline.data.training_images import images_of_side
from pipeline.models.classifier import Classifier
from pipeline.models.decision import choose_threshold
from pipeline.models.metrics import log_loss, scores
from pipeline.params import Params
from pipeline.train import validation_scores


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
            manifest=two_datasets.manifest,
            features=folder / "features",
            checkpoints=folder / "checkpoints",
            out=folder / "model",
            scores=folder / "scores.json",
            history=folder / "history.csv",
        )
    validation = images_of_side(pd.read_parquet(two_datasets.manifest), "validation", two_datasets.datasets)
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
    labels, costs = trained.validation.labels, Params.model_validate(PARAMS).decide
    expected = choose_threshold(labels, probabilities, np.ones(len(labels)), costs)
    assert trained.classifier.decision.threshold == pytest.approx(expected, abs=1e-4)
    assert trained.classifier.decision.prevalence == pytest.approx(labels.mean(), abs=0.1)  # half in each data set


@pytest.mark.slow
def test_the_history_has_a_row_for_each_head_and_penalty_which_was_also_logged_live(trained):
    history = pd.read_csv(trained.folder / "history.csv")
    assert history["step"].tolist() == trained.epochs == [0, 1, 2, 3]
    assert history["phase"].tolist() == ["ours", "ours", "theirs", "theirs"]
    assert history["l2_penalty"].tolist() == [0.1, 0.01, 0.1, 0.01]
    assert set(history) == {"step", "phase", "epoch", "l2_penalty", "loss", "val_loss", "accuracy", "val_accuracy"}


def test_candidates_are_compared_by_a_weighted_loss_if_external_photos_are_held_out(two_datasets):
    validation = images_of_side(pd.read_parquet(two_datasets.manifest), "validation", two_datasets.datasets)
    settings = json.loads(json.dumps(PARAMS))
    settings["split"]["train_on"] = ["ours"]  # so that the two images of "theirs" are held out for validation
    settings["select"]["external_weight"] = 0.25
    probabilities = np.array([0.9, 0.1, 0.9, 0.1, 0.5, 0.5])
    found = validation_scores(validation, probabilities, 0.5, Params.model_validate(settings))
    assert found["log_loss_in_domain"] == pytest.approx(-np.log(0.9))
    assert found["log_loss_external"] == pytest.approx(np.log(2))
    assert found["selection_loss"] == pytest.approx(0.75 * -np.log(0.9) + 0.25 * np.log(2))


def test_with_a_stated_prevalence_candidates_are_compared_as_if_cracks_were_so_frequent(two_datasets):
    validation = images_of_side(pd.read_parquet(two_datasets.manifest), "validation", two_datasets.datasets)
    settings = json.loads(json.dumps(PARAMS))
    settings["decide"]["prevalence"] = 0.1
    probabilities = np.where(validation.labels, 0.5, 0.1)
    found = validation_scores(validation, probabilities, 0.5, Params.model_validate(settings))
    assert found["selection_loss"] == pytest.approx(0.1 * np.log(2) - 0.9 * np.log(0.9))


@pytest.mark.slow
def test_no_checkpoints_are_left_after_a_training(trained):
    assert list((trained.folder / "checkpoints").iterdir()) == []
    assert sorted(path.name for path in (trained.folder / "model").iterdir()) == ["decision.json", "model.keras"]
    assert not list(trained.folder.rglob("*.partial"))
