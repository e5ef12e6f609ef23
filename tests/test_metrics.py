import json
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.metrics import expected_calibration_error, log_loss, scores

LABELS = np.array([True, True, True, False, False])
PROBABILITIES = np.array([0.9, 0.5, 0.2, 0.5, 0.1])


def test_calibration_error_is_the_gap_in_each_bin_weighted_by_its_share_of_the_images():
    # Bins are a fifteenth wide. Bin 1 (from 0.067): stated 0.10 + 0.12, observed 1. Bin 14 (from 0.933): stated
    # 0.95 + 0.97, observed 2. By hand (|0.22 - 1| + |1.92 - 2|) / 4.
    labels = np.array([False, True, True, True])
    error = expected_calibration_error(labels, np.array([0.10, 0.12, 0.95, 0.97]))
    assert error == pytest.approx(0.86 / 4)


def test_errors_in_opposite_directions_cancel_within_a_bin_but_not_between_bins():
    labels = np.array([False, True])
    assert expected_calibration_error(labels, np.array([0.5, 0.5])) == pytest.approx(0)
    assert expected_calibration_error(labels, np.array([0.3, 0.7])) == pytest.approx(0.3)


def test_a_probability_of_one_is_in_the_last_bin():
    assert expected_calibration_error(np.array([False, True]), np.array([1.0, 0.96])) == pytest.approx(0.48)


@settings(derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1))
def test_calibration_error_is_never_more_than_the_mean_distance_of_the_single_images(images):
    labels, probabilities = (np.array(column) for column in zip(*images, strict=True))
    error = expected_calibration_error(labels, probabilities)
    assert 0 <= error <= np.mean(np.abs(labels - probabilities)) + 1e-12


def test_log_loss_is_the_mean_negative_logarithm_of_the_probability_of_the_true_label():
    assert log_loss(np.array([True, False]), np.array([0.8, 0.4])) == pytest.approx(-(log(0.8) + log(0.6)) / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_loss_of_a_certain_mistake_is_finite(dtype):
    assert log_loss(np.array([True]), np.array([0], dtype)) == pytest.approx(-log(1e-7), rel=1e-3)
    assert log_loss(np.array([False]), np.array([1], dtype)) == pytest.approx(-log(1e-7), rel=2e-2)


def test_scores_equal_those_computed_by_hand():
    assert scores(LABELS, PROBABILITIES, 0.5) == {
        "n": 5,
        "accuracy": pytest.approx(3 / 5),
        "f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1)),  # 2 found, 1 false alarm, 1 missed
        "auroc": pytest.approx(4.5 / 6),  # of six pairs four in order and one equal
        "balanced_accuracy": pytest.approx((2 / 3 + 1 / 2) / 2),
        "ece": pytest.approx((0.1 + 0 + 0.8 + 0.1) / 5),  # in bins 13, 7 (stated 1.0, observed 1), 3 and 1
        "threshold": 0.5,
    }


def test_an_image_at_the_threshold_counts_as_crack():
    at, above = (scores(np.array([True, False]), np.array([0.5, 0.1]), threshold) for threshold in (0.5, 0.5 + 1e-9))
    assert (at["f1"], above["f1"]) == (1, 0)


@pytest.mark.parametrize("label", [True, False])
def test_ranking_scores_are_none_if_only_one_label_occurs(label):
    result = scores(np.full(3, label), np.array([0.2, 0.6, 0.7]), 0.5)
    assert result["auroc"] is None
    assert result["balanced_accuracy"] is None
    assert result["accuracy"] == pytest.approx(2 / 3 if label else 1 / 3)


def test_f1_is_zero_without_cracks_and_crack_predictions():
    assert scores(np.array([False]), np.array([0.1]), 0.5)["f1"] == 0


def test_scores_can_be_written_as_json_for_any_precision():
    result = scores(LABELS, PROBABILITIES.astype(np.float32), 0.5)
    assert json.loads(json.dumps(result)) == result
