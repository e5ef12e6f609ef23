import numpy as np

from pipeline.evaluation.scoring import scorer
from pipeline.models.calibration import Calibration, Platt
from pipeline.models.export import calibrated
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras


def test_a_scorer_gives_the_probabilities_of_the_graph_for_any_size():
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), -1.0), np.zeros(1)])
    model = calibrated(classifier, Calibration((Platt(1.0, 0.0),)))
    score = scorer(model)
    for size in (8, 20):
        batch = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
        np.testing.assert_allclose(score(batch), model(batch)["probability"], atol=1e-6)
