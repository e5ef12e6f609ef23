import json

import numpy as np
import pytest

from pipeline.calibration import Calibration, Platt
from pipeline.decision import Decision
from pipeline.export import calibrated
from pipeline.network import build_classifier
from pipeline.performance import measure, measure_apart
from pipeline.scoring import scorer
from pipeline.tf import keras

KEYS = {"p50_ms", "p95_ms", "images_per_s", "size_mb", "resident_mb", "n_cores", "height_px", "width_px"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that takes dark for cracked."""
    folder = tmp_path_factory.mktemp("model")
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), -1.0), np.zeros(1)])
    calibrated(classifier, Calibration((Platt(1.0, 0.0),))).save(folder / "model.keras")
    decision = Decision(threshold=0.5, review_from=0.4, review_to=0.6)
    (folder / "decision.json").write_text(json.dumps(decision.as_dict()))
    return folder


def test_a_fresh_process_tells_times_size_and_memory(folder):
    measured = measure_apart(folder, 48, 64)
    assert set(measured) == KEYS
    assert 0 < measured["p50_ms"] <= measured["p95_ms"]
    assert measured["images_per_s"] > 0
    assert measured["size_mb"] == pytest.approx((folder / "model.keras").stat().st_size / 1e6)
    assert 50 < measured["resident_mb"] < 10_000  # TensorFlow alone takes more than 50
    assert (measured["height_px"], measured["width_px"]) == (48, 64)


def test_times_are_those_of_one_image_and_of_32(folder, monkeypatch):
    clock = iter(np.arange(10_000))
    sizes = []
    monkeypatch.setattr("pipeline.performance.scorer", lambda model: lambda batch: sizes.append(batch.shape))
    monkeypatch.setattr("pipeline.timing.time.perf_counter", lambda: float(next(clock)))
    measured = measure(folder, 48, 64)
    assert (measured["p50_ms"], measured["p95_ms"], measured["images_per_s"]) == (1000, 1000, 32)
    assert sizes.count((1, 48, 64, 3)) >= 100
    assert set(sizes) == {(1, 48, 64, 3), (32, 48, 64, 3)}


def test_a_scorer_gives_the_probabilities_of_the_graph_for_any_size(folder):
    model = keras.models.load_model(folder / "model.keras", compile=False)
    score = scorer(model)
    for size in (8, 20):
        batch = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
        np.testing.assert_allclose(score(batch), model(batch)["probability"], atol=1e-6)
