import shutil

import numpy as np
import pytest

from pipeline.inference import build_starter
from pipeline.inference.build_starter import relative_difference, write_starter
from pipeline.inference.kept_starter import STARTER_DETECTOR, STARTER_FILE
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, missed_cracks
from pipeline.inference.starter import load_starter
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.classifier import Classifier
from pipeline.models.decision import Decision
from pipeline.models.linear_head import LinearHead, linear_classifier
from pipeline.params import Backbone

BACKBONE = Backbone(architecture="mobilenet-v2", image_size_px=32, feature_layers=("head_conv",))
DECISION = Decision(threshold=0.4, review_from=0.2, review_to=0.8)


def head(seed=0):
    return LinearHead(np.random.default_rng(seed).normal(0, 0.1, 2560).astype(np.float32), -0.3)


def classifier(calibration):
    return Classifier(calibrated(linear_classifier(BACKBONE, head()), calibration), DECISION)


ONE_CURVE = Calibration((Platt(1.5, 0.2),))
TWO_CURVES = Calibration((Platt(1.5, 0.2), Platt(0.5, -1)), (head(1), head(2)))


@pytest.fixture(scope="module", params=[ONE_CURVE, TWO_CURVES], ids=["one curve", "two curves"])
def probe(request):
    return classifier(request.param)


def test_a_starter_gives_the_same_probabilities_as_the_model_it_was_built_from(probe, tmp_path):
    write_starter(probe, BACKBONE, tmp_path / "starter.npz")
    loaded = load_starter(tmp_path / "starter.npz")
    batch = np.random.default_rng(1).integers(0, 256, (4, 40, 50, 3), np.uint8)
    np.testing.assert_allclose(loaded.model(batch)["probability"], probe.model(batch)["probability"], atol=1e-6)
    assert loaded.decision == DECISION
    assert loaded.content_hash() == probe.content_hash()


def test_starters_are_compared_by_their_largest_difference(probe, tmp_path):
    write_starter(probe, BACKBONE, tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as arrays:
        moved = dict(arrays)
    np.savez(tmp_path / "same.npz", **moved)
    assert relative_difference(tmp_path / "one.npz", tmp_path / "same.npz") == 0
    for kind in moved.keys() - {"settings"}:
        other = moved | {kind: moved[kind].copy()}
        other[kind].flat[0] += np.float32(0.1 * np.abs(moved[kind]).max())
        np.savez(tmp_path / "other.npz", **other)
        assert relative_difference(tmp_path / "one.npz", tmp_path / "other.npz") == pytest.approx(0.1, rel=1e-3)
        other[kind].flat[0] = np.nan
        np.savez(tmp_path / "broken.npz", **other)
        assert relative_difference(tmp_path / "one.npz", tmp_path / "broken.npz") == float("inf")
    np.savez(tmp_path / "shorter.npz", **moved | {"kernel": moved["kernel"][1:]})
    assert relative_difference(tmp_path / "one.npz", tmp_path / "shorter.npz") == float("inf")
    np.savez(tmp_path / "fewer.npz", kernel=moved["kernel"])
    assert relative_difference(tmp_path / "one.npz", tmp_path / "fewer.npz") == float("inf")


def test_the_shipped_starter_is_small_and_can_be_loaded():
    assert STARTER_FILE.stat().st_size < 300_000
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
    assert external.endswith("the model missed 1,087 of 1,514 cracks (sdnet Walls), 1 of 2 cracks (piers).")
    assert "4 of 958 cracks (metu)" in own
