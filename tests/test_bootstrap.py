import json
import math
from itertools import product

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.evaluation.bootstrap import (
    N_RESAMPLES,
    SCORES,
    paired_difference,
    resampled_groups,
    scores_with_intervals,
    weighted_accuracy,
    weighted_scorer,
)
from pipeline.models.decision import Decision
from pipeline.models.metrics import scores

AT_HALF = Decision(0.5, 0.5, 0.5)
LABELS = np.array([True, True, True, False, False])
PROBABILITIES = np.array([0.9, 0.5, 0.2, 0.5, 0.1])


def drawn(n=400, n_groups=40, seed=0, decimals=2):
    """Labels, probabilities with many ties, and groups."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    probabilities = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1).round(decimals)
    return labels, probabilities, rng.integers(n_groups, size=n)


def by_sklearn(labels, probabilities, weights):
    """The scores at threshold 0.5 as scikit-learn computes them."""
    called = probabilities >= 0.5
    even = weights / np.where(labels, weights[labels].sum(), weights[~labels].sum())
    return {
        "accuracy": sk.accuracy_score(labels, called, sample_weight=weights),
        "precision": sk.precision_score(labels, called, sample_weight=weights),
        "recall": sk.recall_score(labels, called, sample_weight=weights),
        "f1": sk.f1_score(labels, called, sample_weight=weights),
        "auroc": sk.roc_auc_score(labels, probabilities, sample_weight=weights),
        "average_precision": sk.average_precision_score(labels, probabilities, sample_weight=weights),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called, sample_weight=weights),
        "balanced_precision": sk.precision_score(labels, called, sample_weight=even),
        "balanced_f1": sk.f1_score(labels, called, sample_weight=even),
    }


def test_weighted_scores_equal_those_of_scikit_learn_with_ties():
    labels, probabilities, groups = drawn()
    weights = np.random.default_rng(1).integers(0, 4, (5, 40)).astype(float)
    weighted = weighted_scorer(labels, probabilities, groups, AT_HALF)(weights)
    for row in range(len(weights)):
        expected = by_sklearn(labels, probabilities, weights[row, groups])
        assert {name: weighted[name][row] for name in expected} == pytest.approx(expected)


def test_a_group_of_weight_two_counts_like_its_images_twice():
    labels, probabilities, groups = drawn()
    weights = np.ones(40)
    weights[[0, 3]] = 2, 0
    repeats = np.repeat(np.arange(400), weights[groups].astype(int))
    plain = scores(labels[repeats], probabilities[repeats], 0.5)
    weighted = weighted_scorer(labels, probabilities, groups, AT_HALF)(weights[None])
    for name in ("accuracy", "f1", "auroc", "balanced_accuracy", "ece"):
        assert weighted[name][0] == pytest.approx(plain[name])


def test_balanced_scores_equal_those_computed_by_hand():
    # Recall 2/3, false alarms 1/2. Each crack weighs 1/6, each intact image 1/4; stated less observed by bins 13, 7, 3
    # and 1 is -0.1/6, -0.5/6 + 0.5/4, -0.8/6 and 0.1/4.
    result = scores_with_intervals(LABELS, PROBABILITIES, np.arange(5), AT_HALF)
    assert result["balanced_precision"] == pytest.approx((2 / 3) / (2 / 3 + 1 / 2))
    assert result["balanced_f1"] == pytest.approx(2 * (2 / 3) / (2 / 3 + 1 / 2 + 1))
    assert result["balanced_ece"] == pytest.approx(0.1 / 6 + 1 / 24 + 0.8 / 6 + 0.1 / 4)
    assert (result["n"], result["n_groups"], result["prevalence"]) == (5, 5, pytest.approx(3 / 5))


def test_what_is_for_review_and_what_is_missed_in_spite_of_it_are_shares_of_images_and_of_cracks():
    result = scores_with_intervals(LABELS, PROBABILITIES, np.arange(5), Decision(0.6, 0.4, 0.8))
    assert result["review_share"] == pytest.approx(2 / 5)  # the crack and the intact image at 0.5
    assert result["missed_with_review"] == pytest.approx(1 / 3)  # the crack at 0.2
    assert result["recall"] == pytest.approx(1 / 3)  # all other scores are at the threshold
    above = scores_with_intervals(LABELS, PROBABILITIES, np.arange(5), Decision(0.45, 0.4, 0.8))
    assert above["review_share"] == pytest.approx(2 / 5)  # the band ends where it did
    assert scores_with_intervals(~LABELS[:3], PROBABILITIES[:3], np.arange(3), AT_HALF)["missed_with_review"] is None


def test_the_cracks_missed_at_five_percent_of_false_alarms_of_a_hand_worked_example():
    # 40 intact images at 0 to 0.39, two of which may be called: the cracks over 0.37 are found
    probabilities = np.concatenate([np.arange(40), [50, 38.5, 37.5, 36.5, 20]]) / 100
    labels = np.arange(45) >= 40
    result = scores_with_intervals(labels, probabilities, np.arange(45), AT_HALF)
    assert result["missed_at_5_percent"] == pytest.approx(2 / 5)
    low, high = result["interval"]["missed_at_5_percent"].values()
    assert 0 <= low < 2 / 5 < high <= 1
    tied = np.where(probabilities > 0.36, 0.5, probabilities)  # three intact images at the threshold are too many
    assert scores_with_intervals(labels, tied, np.arange(45), AT_HALF)["missed_at_5_percent"] == 1
    for of_one_label in (labels, ~labels):
        found = scores_with_intervals(
            labels[of_one_label], probabilities[of_one_label], np.arange(of_one_label.sum()), AT_HALF
        )
        assert found["missed_at_5_percent"] is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_scores_equal_unweighted_ones(dtype):
    labels, probabilities, groups = drawn(decimals=6)
    probabilities = probabilities.astype(dtype)
    plain = scores(labels, probabilities, 0.5)
    result = scores_with_intervals(labels, probabilities, groups, AT_HALF)
    assert {name: result[name] for name in plain if name != "threshold"} == pytest.approx(
        {name: value for name, value in plain.items() if name != "threshold"}
    )


def test_each_resample_draws_as_many_groups_as_there_are_with_replacement():
    weights = np.concatenate(list(resampled_groups(7, 300_000)))
    assert weights.shape == (N_RESAMPLES, 7)
    assert set(weights.sum(axis=1)) == {7}
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(weights.var(axis=0), 6 / 7, rtol=0.15)  # of the multinomial distribution


def test_the_interval_matches_all_possible_resamples_of_five_groups():
    # Five groups of four cracks, of which 0 to 4 are found: the recall of a resample is the mean of five drawn shares.
    found = np.repeat(np.arange(5), 4) > np.tile(np.arange(4), 5)
    labels = np.append(np.ones(20, bool), np.zeros(5, bool))
    groups = np.append(np.repeat(np.arange(5), 4), np.arange(5))
    result = scores_with_intervals(labels, np.append(found, np.zeros(5)) * 1.0, groups, AT_HALF)
    every = [np.mean(shares) / 4 for shares in product(range(5), repeat=5)]
    low, high = result["interval"]["recall"].values()
    np.testing.assert_allclose((low, high), np.percentile(every, [2.5, 97.5]), atol=0.051)  # a step is 0.05
    assert low < result["recall"] == 0.5 < high


def test_images_of_one_group_are_not_treated_as_independent():
    labels, probabilities, _ = drawn(n=200)
    alone = scores_with_intervals(labels, probabilities, np.arange(200), AT_HALF)["interval"]["auroc"]
    times_ten = [np.tile(values, 10) for values in (labels, probabilities, np.arange(200))]
    together = scores_with_intervals(*times_ten, AT_HALF)["interval"]["auroc"]
    fooled = scores_with_intervals(*times_ten[:2], np.arange(2000), AT_HALF)["interval"]["auroc"]
    assert together == pytest.approx(alone)
    assert fooled["high"] - fooled["low"] < 0.5 * (together["high"] - together["low"])


def test_equal_inputs_give_equal_intervals_and_the_name_of_a_group_does_not_matter():
    labels, probabilities, groups = drawn()
    first = scores_with_intervals(labels, probabilities, groups, AT_HALF)
    assert scores_with_intervals(labels, probabilities, np.array([f"g{g:03}" for g in groups]), AT_HALF) == first
    assert json.loads(json.dumps(first)) == first


def test_four_groups_have_scores_and_no_intervals():
    labels, probabilities, groups = drawn(n_groups=4)
    result = scores_with_intervals(labels, probabilities, groups, Decision(0.5, 0.4, 0.6))
    assert result["interval"] == dict.fromkeys(SCORES)
    assert all(0 < result[name] < 1 for name in SCORES)


def test_a_set_without_mistakes_has_no_interval():
    labels = np.arange(40) % 2 == 0
    result = scores_with_intervals(labels, np.where(labels, 0.9, 0.1), np.arange(40), AT_HALF)
    assert result["f1"] == result["auroc"] == 1
    assert not any(result["interval"][name] for name in ("f1", "auroc", "precision", "recall", "balanced_accuracy"))


def test_a_score_that_most_resamples_lack_has_no_interval():
    labels = np.arange(40) == 0  # in a third of the resamples there is no crack
    probabilities = np.linspace(0.9, 0.1, 40)
    interval = scores_with_intervals(labels, probabilities, np.arange(40), AT_HALF)["interval"]
    assert interval["accuracy"]
    assert not any(interval[name] for name in ("recall", "auroc", "average_precision", "balanced_f1"))


@pytest.mark.parametrize("label", [True, False])
def test_scores_that_are_undefined_for_one_label_are_none(label):
    result = scores_with_intervals(np.full(6, label), np.full(6, 0.1), np.arange(6), AT_HALF)
    assert result["auroc"] is result["balanced_accuracy"] is result["balanced_f1"] is result["precision"] is None
    assert result["recall"] == (0 if label else None)


def test_weighted_accuracy_weights_each_label_by_the_cost_of_a_mistake_and_not_by_its_share():
    right = np.array([True, True, False, True, False])  # recall 2/3, specificity 1/2
    assert weighted_accuracy(LABELS, right, 0.5) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert weighted_accuracy(LABELS, right, 0.9) == pytest.approx(0.9 * 2 / 3 + 0.1 / 2)
    assert weighted_accuracy(LABELS[:3], right[:3], 0.5) == pytest.approx(2 / 3)
    assert math.isnan(weighted_accuracy(LABELS[:0], right[:0], 0.5))


def test_a_paired_difference_is_that_of_the_weighted_accuracies():
    labels, probabilities, groups = drawn()
    first, second = (probabilities >= 0.5) == labels, (probabilities >= 0.4) == labels
    found = paired_difference(labels, first, second, groups, 0.7)
    assert found.value == pytest.approx(weighted_accuracy(labels, first, 0.7) - weighted_accuracy(labels, second, 0.7))
    assert found.low < found.value
    mirrored = paired_difference(labels, second, first, groups, 0.7)
    assert (mirrored.value, mirrored.confidence) == (pytest.approx(-found.value), pytest.approx(1 - found.confidence))


def test_mistakes_common_to_two_models_do_not_widen_the_interval_of_their_difference():
    labels = np.arange(200) % 2 == 0
    first = np.arange(200) % 3 > 0  # wrong on a third of the images
    found = paired_difference(labels, first, first, np.arange(200), 0.5)
    assert (found.value, found.low, found.confidence) == (0, 0, 0.5)


def test_a_pair_is_resampled_by_groups():
    labels, groups = np.tile([True, False], 200), np.repeat(np.arange(20), 20)
    first, second = np.ones(400, bool), np.repeat(np.arange(20) >= 4, 20)  # in four groups the second is wrong
    by_group = paired_difference(labels, first, second, groups, 0.5)
    by_image = paired_difference(labels, first, second, np.arange(400), 0.5)
    # the share of 4 in 20 groups: the 2.5 % point of the binomial distribution is 1 of 20, its step 0.05
    assert by_group.low == pytest.approx(0.05, abs=0.026)
    assert by_image.low == pytest.approx(0.16, abs=0.02)


def test_a_resample_without_a_crack_counts_against_the_challenger():
    labels = np.arange(10) == 0
    assert paired_difference(labels, np.ones(10, bool), np.zeros(10, bool), np.arange(10), 0.5).low == -1
