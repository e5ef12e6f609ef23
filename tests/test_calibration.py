import numpy as np
import pytest

from pipeline.calibration import Calibration, Foreign, Platt, fit_calibration
from pipeline.decision import fit_platt
from pipeline.export import calibrated
from pipeline.linear import STD_OFFSET, LinearHead, Scale
from pipeline.metrics import expected_calibration_error
from pipeline.network import build_classifier
from pipeline.tf import keras

N = 20_000  # so that the error of calibration is not that of counting


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.fixture(scope="module")
def two_worlds():
    """Images like those trained on, where a logit is to be believed, and lent ones, where it says far too much."""
    rng = np.random.default_rng(0)
    lent = np.arange(N) % 2 == 1
    logits = rng.normal(0, 4, N)
    truth = np.where(lent, sigmoid(0.3 * logits - 1.5), sigmoid(2 * logits))
    features = rng.normal(0, 0.5, (N, 100)) + np.where(lent, 2, -2)[:, None]
    return rng.random(N) < truth, logits, features, lent


def test_a_logit_without_lent_photos_is_calibrated_by_platt_alone():
    labels, logits = np.arange(40) % 4 == 0, np.linspace(-3, 3, 40)
    calibration = fit_calibration(labels, logits, np.zeros((40, 2)), np.zeros(40, bool))
    slope, intercept = fit_platt(labels, logits)
    np.testing.assert_allclose(
        calibration.probabilities(logits, np.zeros((40, 2))), sigmoid(slope * logits + intercept)
    )
    assert calibration.foreign is None


def test_lent_photos_of_one_label_get_no_curve_of_their_own():
    labels, lent = np.arange(40) % 4 == 0, np.arange(40) == 0
    calibration = fit_calibration(labels, np.linspace(-3, 3, 40), np.zeros((40, 2)), lent)
    assert calibration.foreign is None


def test_each_world_is_calibrated_by_its_own_curve(two_worlds):
    labels, logits, features, lent = two_worlds
    own = fit_calibration(labels, logits, features, lent).probabilities(logits, features)
    one_for_both = Platt(*fit_platt(labels, logits)).probabilities(logits)
    for world in (lent, ~lent):
        assert expected_calibration_error(labels[world], own[world]) < 0.04
        assert expected_calibration_error(labels[world], one_for_both[world]) > 0.06


def test_an_image_between_two_worlds_gets_the_mean_of_both_curves():
    strangeness = LinearHead(np.array([1.0, 0.0], np.float32), 0.0)
    calibration = Calibration(Platt(2, 0), Foreign(Platt(0.5, -1), strangeness))
    features = np.array([[0.0, 7.0], [-50.0, 7.0], [50.0, 7.0]])
    near, far = sigmoid(2 * 1.5), sigmoid(0.5 * 1.5 - 1)
    found = calibration.probabilities(np.full(3, 1.5), features)
    np.testing.assert_allclose(found, [(near + far) / 2, near, far], atol=1e-6)


def test_the_exported_graph_computes_the_same_mixture():
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    classifier = build_classifier(network, 32, [keras.layers.Dense(1, name="head")])
    strangeness = LinearHead(np.array([1.0, -2.0, 0.5], np.float32), 0.3)
    calibration = Calibration(Platt(2, 0.1), Foreign(Platt(0.5, -1), strangeness))
    batch = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    plain = {name: np.asarray(output) for name, output in classifier(batch).items()}
    exported = {name: np.asarray(output) for name, output in calibrated(classifier, calibration)(batch).items()}
    expected = calibration.probabilities(plain["logit"][:, 0], plain["features"])
    np.testing.assert_allclose(exported["probability"], expected, atol=1e-6)
    assert np.ptp(expected) > 0.01
    np.testing.assert_array_equal(exported["features"], plain["features"])


def test_a_head_learned_on_standardised_features_answers_the_same_on_plain_ones():
    features = np.random.default_rng(0).normal([5, -40], [0.1, 100], (50, 2))
    scale = Scale.of(features)
    np.testing.assert_allclose(scale.std, features.std(axis=0) + STD_OFFSET)
    coefficients = np.array([0.7, -1.2])
    head = LinearHead.on_plain_features(coefficients, 0.5, scale)
    np.testing.assert_allclose(head.logits(features), scale.standardised(features) @ coefficients + 0.5, atol=1e-4)
