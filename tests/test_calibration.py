import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.calibration import (
    Calibration,
    Platt,
    calibrated,
    fit_calibration,
    fit_calibration_with_common_curve,
    fit_platt,
)
from pipeline.models.decision import prevalence_weights
from pipeline.models.linear_head import LinearHead
from pipeline.models.metrics import expected_calibration_error
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras

N = 20_000  # large enough that the sampling error is small


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.fixture(scope="module")
def two_data_sets():
    """Images of one data set with calibrated logits, and of one whose logits are far too confident."""
    rng = np.random.default_rng(0)
    lent = np.arange(N) % 2 == 1
    logits = rng.normal(0, 4, N)
    truth = np.where(lent, sigmoid(0.3 * logits - 1.5), sigmoid(2 * logits))
    features = rng.normal(0, 0.5, (N, 100)) + np.where(lent, 2, -2)[:, None]
    return rng.random(N) < truth, logits, features, np.where(lent, "decks", "walls")


def test_platt_reaches_its_soft_targets_on_perfectly_separated_labels():
    # n cracks at +1 and n intact at -1: the targets are (n + 1) / (n + 2) and 1 / (n + 2), so the slope is log(n + 1).
    labels = np.arange(100) % 2 == 0
    slope, intercept = fit_platt(labels, np.where(labels, 1.0, -1.0))
    assert slope == pytest.approx(math.log(51), rel=1e-6)
    assert intercept == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1, 1e3])
def test_platt_does_not_depend_on_the_scale_of_the_logits(scale):
    labels = np.arange(1000) % 2 == 0
    logits = np.where(labels, 1, -1) + np.random.default_rng(0).normal(0, 0.1, 1000)
    slope, intercept = fit_platt(labels, logits)
    scaled_slope, scaled_intercept = fit_platt(labels, (logits * scale).astype(np.float32))
    assert scaled_slope * scale == pytest.approx(slope, rel=1e-4)
    assert scaled_intercept == pytest.approx(intercept, abs=1e-3)


@pytest.mark.parametrize(("slope", "intercept"), [(1.7, -0.6), (0.3, 2.0)])
def test_platt_recovers_slope_and_intercept_from_random_labels(slope, intercept):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 40_000)
    labels = rng.random(len(logits)) < sigmoid(slope * logits + intercept)
    assert fit_platt(labels, logits) == pytest.approx((slope, intercept), abs=0.05)


@settings(derandomize=True)
@given(st.lists(st.floats(0.1, 100), min_size=1), st.lists(st.floats(-100, -0.1), min_size=1))
def test_platt_stays_finite_and_rising_where_the_labels_are_perfectly_separated(cracks, intact):
    labels = np.arange(len(cracks) + len(intact)) < len(cracks)
    slope, intercept = fit_platt(labels, np.array(cracks + intact))
    assert 0 < slope < math.inf
    assert math.isfinite(intercept)


def test_a_single_data_set_is_calibrated_by_one_platt_curve():
    labels, logits = np.arange(40) % 4 == 0, np.linspace(-3, 3, 40)
    calibration = fit_calibration(labels, logits, np.zeros((40, 2)), np.full(40, "walls"))
    assert calibration == Calibration((fit_platt(labels, logits),))
    slope, intercept = calibration.curves[0]
    np.testing.assert_allclose(
        calibration.probabilities(logits, np.zeros((40, 2))), sigmoid(slope * logits + intercept)
    )


def test_a_data_set_with_one_label_gets_no_curve_and_does_not_change_the_others():
    labels, logits = np.arange(40) % 4 == 0, np.linspace(-3, 3, 40)
    datasets = np.where(np.arange(40) < 4, "lent", "walls")
    labels[0] = False
    calibration = fit_calibration(labels, logits, np.zeros((40, 2)), datasets)
    assert calibration == Calibration((fit_platt(labels[4:], logits[4:]),))


def test_data_sets_of_one_label_each_share_one_curve():
    labels, logits = np.arange(40) % 4 == 0, np.linspace(-3, 3, 40)
    calibration = fit_calibration(labels, logits, np.zeros((40, 2)), np.where(labels, "cracks", "intact"))
    assert calibration == Calibration((fit_platt(labels, logits),))


def test_each_data_set_is_calibrated_by_its_own_curve(two_data_sets):
    labels, logits, features, datasets = two_data_sets
    own = fit_calibration(labels, logits, features, datasets).probabilities(logits, features)
    one_for_both = fit_platt(labels, logits).probabilities(logits)
    for world in (datasets == "decks", datasets == "walls"):
        assert expected_calibration_error(labels[world], own[world]) < 0.04
        assert expected_calibration_error(labels[world], one_for_both[world]) > 0.06


def test_images_of_three_data_sets_are_recognised_by_their_features():
    rng = np.random.default_rng(0)
    world = np.arange(6000) % 3
    datasets = np.array(["a", "b", "c"])[world]
    logits, intercepts = rng.normal(0, 2, 6000), np.array([-2, 0, 2])[world]
    labels = rng.random(6000) < sigmoid(logits + intercepts)
    features = rng.normal(0, 0.5, (6000, 90)) + 2 * np.repeat(np.eye(3), 30, axis=1)[world]
    calibration = fit_calibration(labels, logits, features, datasets)
    assert [curve.intercept for curve in calibration.curves] == pytest.approx([-2, 0, 2], abs=0.25)
    found = calibration.probabilities(logits, features)
    np.testing.assert_allclose(found, sigmoid(logits + intercepts), atol=0.12)


def test_an_image_between_two_data_sets_gets_the_mean_of_both_curves():
    membership = (LinearHead(np.zeros(2, np.float32), 0.0), LinearHead(np.array([1.0, 0.0], np.float32), 0.0))
    calibration = Calibration((Platt(2, 0), Platt(0.5, -1)), membership)
    features = np.array([[0.0, 7.0], [-50.0, 7.0], [50.0, 7.0]])
    one, other = sigmoid(2 * 1.5), sigmoid(0.5 * 1.5 - 1)
    found = calibration.probabilities(np.full(3, 1.5), features)
    np.testing.assert_allclose(found, [(one + other) / 2, one, other], atol=1e-6)


def test_where_logits_are_averaged_an_image_between_two_curves_gets_the_mean_slope_and_intercept():
    membership = (LinearHead(np.zeros(2, np.float32), 0.0), LinearHead(np.array([1.0, 0.0], np.float32), 0.0))
    calibration = Calibration((Platt(2, 0), Platt(0.5, -1)), membership, averages_logits=True)
    features = np.array([[0.0, 7.0], [-50.0, 7.0], [50.0, 7.0]])
    found = calibration.probabilities(np.full(3, 1.5), features)
    expected = sigmoid(np.array([1.25 * 1.5 - 0.5, 2 * 1.5, 0.5 * 1.5 - 1]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("averages_logits", [False, True])
def test_the_exported_graph_computes_the_same_mixture(averages_logits):
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    classifier = build_classifier(network, 32, [keras.layers.Dense(1, name="head")])
    kernels = np.array([[1.0, -2.0, 0.5], [0.2, 0.1, -0.3], [0, 0, 0.1]], np.float32)
    membership = tuple(LinearHead(kernel, bias) for kernel, bias in zip(kernels, (0.3, 0, -0.2), strict=True))
    curves = tuple(Platt(slope, intercept) for slope, intercept in zip((2, 0.5, 1), (0.1, -1, 3), strict=True))
    calibration = Calibration(curves, membership, averages_logits)
    batch = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    plain = {name: np.asarray(output) for name, output in classifier(batch).items()}
    exported = {name: np.asarray(output) for name, output in calibrated(classifier, calibration)(batch).items()}
    expected = calibration.probabilities(plain["logit"][:, 0], plain["features"])
    np.testing.assert_allclose(exported["probability"], expected, atol=1e-6)
    assert np.ptp(expected) > 0.01
    np.testing.assert_array_equal(exported["features"], plain["features"])


@pytest.fixture(scope="module")
def with_others(two_data_sets):
    """The calibration of two data sets, and the features of images that are similar to neither."""
    labels, logits, features, datasets = two_data_sets
    others = np.random.default_rng(1).normal(0, 0.5, (2000, 100)) + np.repeat([[3, -3]], 50, axis=1).reshape(1, 100)
    membership = np.concatenate([features[:4000], others]), np.append(datasets[:4000], np.full(2000, ""))
    return fit_calibration_with_common_curve(labels, logits, datasets, membership), others


def test_an_image_that_is_similar_to_no_data_set_gets_the_curve_of_all_images(two_data_sets, with_others):
    labels, logits, _, _ = two_data_sets
    calibration, others = with_others
    assert calibration.curves[0] == fit_platt(labels, logits)
    found = calibration.probabilities(logits[:2000], others)
    np.testing.assert_allclose(found, calibration.curves[0].probabilities(logits[:2000]), atol=0.02)


def test_beside_the_curve_of_all_images_each_data_set_has_its_own(two_data_sets, with_others):
    labels, logits, features, datasets = two_data_sets
    calibration, _ = with_others
    own = calibration.probabilities(logits, features)
    for curve, name in zip(calibration.curves[1:], ("decks", "walls"), strict=True):
        here = datasets == name
        assert curve == fit_platt(labels[here], logits[here])
        np.testing.assert_allclose(own[here], curve.probabilities(logits[here]), atol=0.05)


def test_a_data_set_without_images_to_learn_similarity_from_has_no_curve_but_counts_in_that_of_all_images(
    two_data_sets,
):
    labels, logits, features, datasets = two_data_sets
    names = np.where(np.arange(N) % 3 == 0, "elsewhere", datasets)
    membership = np.concatenate([features, features + 9]), np.append(datasets, np.full(N, ""))
    calibration = fit_calibration_with_common_curve(labels, logits, names, membership)
    assert len(calibration.curves) == len(calibration.membership) == 3
    assert calibration.curves[0] == fit_platt(labels, logits)


def test_a_head_that_was_trained_on_one_data_set_has_one_curve(two_data_sets):
    labels, logits, features, datasets = two_data_sets
    one = datasets == "decks"
    membership = features, np.where(one, "decks", "")
    weights = np.where(labels[one], 2.0, 1.0)
    calibration = fit_calibration_with_common_curve(labels[one], logits[one], datasets[one], membership, weights)
    assert calibration == Calibration((fit_platt(labels[one], logits[one], weights),))


def test_an_image_of_weight_two_counts_as_two_images():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 2000)
    labels = rng.random(2000) < sigmoid(logits)
    twice = np.arange(2000) % 3 == 0
    repeated = np.concatenate([np.arange(2000), np.flatnonzero(twice)])
    weighted = fit_platt(labels, logits, np.where(twice, 2.0, 1.0))
    assert weighted == pytest.approx(fit_platt(labels[repeated], logits[repeated]), abs=0.01)


def test_probabilities_are_right_at_the_stated_prevalence():
    rng = np.random.default_rng(0)
    labels = rng.random(40_000) < 0.05
    logits = rng.normal(np.where(labels, 2.0, -1.0), 2.0)
    weights = prevalence_weights(labels, np.full(40_000, "walls"), 0.5)
    calibration = fit_calibration(labels, logits, np.zeros((40_000, 1)), np.full(40_000, "walls"), weights)
    even = rng.random(40_000) < 0.5
    seen = calibration.probabilities(rng.normal(np.where(even, 2.0, -1.0), 2.0), np.zeros((40_000, 1)))
    assert expected_calibration_error(even, seen) < 0.03
