import hashlib
import json
import shutil

import numpy as np
import pytest
import yaml
from tiny_conv_head import BACKBONE, CONV_HEAD
from two_datasets import PARAMS

from pipeline.errors import RefusedError
from pipeline.inference import build_starter
from pipeline.inference.build_starter import write_starter
from pipeline.inference.kept_starter import STARTER_DETECTOR, STARTER_FILE
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, missed_cracks
from pipeline.inference.starter import load_starter
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.classifier import Classifier
from pipeline.models.conv_head import activations_of, build_conv_head, conv_head_classifier, stored_weights
from pipeline.models.decision import DECISION_FILE, Decision
from pipeline.models.linear_head import LinearHead
from pipeline.models.model_files import MODEL_FILE, TRACER_WEIGHTS
from pipeline.models.tf import keras

DECISION = Decision(threshold=0.4, review_from=0.2, review_to=0.8, prevalence=0.5)


def classifier(slope=1.5):
    keras.utils.set_random_seed(0)
    activations = activations_of(BACKBONE, CONV_HEAD)
    head = build_conv_head(activations, CONV_HEAD)
    head.set_weights(stored_weights(head))
    uncalibrated = conv_head_classifier(activations, head)
    kernel = np.random.default_rng(0).normal(0, 0.1, activations.n_features).astype(np.float32)
    membership = (LinearHead(0 * kernel, 0.0), LinearHead(kernel, 0.3))
    calibration = Calibration((Platt(slope, 0.2), Platt(2 * slope, -0.7)), membership, averages_logits=True)
    return Classifier(calibrated(uncalibrated, calibration), DECISION)


@pytest.fixture(scope="module")
def trained():
    return classifier()


def test_a_starter_gives_the_same_probabilities_as_the_model_it_was_built_from(trained, tmp_path):
    write_starter(trained, BACKBONE, CONV_HEAD, tmp_path / "starter.npz")
    loaded = load_starter(tmp_path / "starter.npz")
    batch = np.random.default_rng(1).integers(0, 256, (4, 40, 50, 3), np.uint8)
    np.testing.assert_allclose(loaded.model(batch)["probability"], trained.model(batch)["probability"], atol=1e-6)
    assert loaded.decision == DECISION


@pytest.fixture
def project(two_datasets, tmp_path, monkeypatch, trained):
    """A project with test images and a candidate, whose starter is that candidate."""
    monkeypatch.setattr(build_starter, "STARTER_FILE", tmp_path / "starter.npz")
    params = tmp_path / "params.yaml"
    settings = PARAMS | {"backbones": {"small": BACKBONE.model_dump()}, "candidates": {"conv": CONV_HEAD.model_dump()}}
    params.write_text(yaml.safe_dump(json.loads(json.dumps(settings))))

    def head(model, *flags):
        folder = tmp_path / "conv"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model.model.save(folder / MODEL_FILE)
        (folder / DECISION_FILE).write_text(json.dumps(model.decision.as_dict()))
        paths = ["--datasets", str(two_datasets.datasets), "--manifest", str(two_datasets.manifest)]
        monkeypatch.setattr("sys.argv", ["", "head", "--params", str(params), "--model", str(folder), *paths, *flags])
        build_starter.main()

    head(trained)
    monkeypatch.setattr(build_starter, "load_starter", lambda: load_starter(tmp_path / "starter.npz"))
    return head


def test_a_model_with_the_scores_of_the_starter_is_the_same_and_another_one_is_refused(project, trained, caplog):
    with caplog.at_level("INFO"):
        project(trained, "--check")
    assert "ours" in caplog.text
    with pytest.raises(RefusedError, match=r"AUROC differs by 1\.000 from that of starter\.npz, more than 0\.02"):
        project(classifier(slope=-1.5), "--check")


def test_the_shipped_starter_was_trained_with_the_tracer_that_ships():
    with np.load(STARTER_FILE) as arrays:
        trained_with = json.loads(str(arrays["settings"]))["tracer"]
    assert trained_with == hashlib.sha256(TRACER_WEIGHTS.read_bytes()).hexdigest()


def test_the_shipped_starter_is_small_and_can_be_loaded():
    assert STARTER_FILE.stat().st_size < 6_000_000
    starter = load_starter()
    outputs = starter.model(np.full((1, 64, 64, 3), 128, np.uint8))
    assert 0 <= float(outputs["probability"][0]) <= 1
    assert starter.decision.correction(0.2)["prevalence"] == 0.2  # what it assumes is recorded
    assert 0 < starter.decision.review_from <= starter.decision.threshold <= starter.decision.review_to < 1


def test_what_the_starter_misses_on_external_structures_is_added_to_its_detector(tmp_path, monkeypatch):
    detector = tmp_path / "detector.npz"
    shutil.copy(STARTER_DETECTOR, detector)
    monkeypatch.setattr(build_starter, "STARTER_DETECTOR", detector)
    (tmp_path / "cracks.csv").write_text("path,probability\na,0.2\nb,0.9\nc,\n")
    monkeypatch.setattr("sys.argv", ["", "external", "--name", "piers", "--cracks", str(tmp_path / "cracks.csv")])
    build_starter.main()
    external, own = missed_cracks(OutOfDistributionDetector.load(detector))
    assert external.endswith(
        "the model missed 1 of 2 cracks (piers), 52 of 260 cracks (CFD, asphalt), 64 of 367 cracks (UAV75, concrete)."
    )
    assert "0 of 958 cracks (metu)" in own
