import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.decision import MARGIN, Decision, choose_decision, choose_threshold
from pipeline.params import Decide

costs = st.floats(0.1, 10)
shares = st.floats(0, 0.9)


@st.composite
def validations(draw):
    """Labels, both present, and probabilities below 1, many of them equal."""
    rows = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 19) | st.floats(0, 19)), min_size=0, max_size=30))
    labels, values = zip(*rows, (True, draw(st.integers(0, 19))), (False, draw(st.integers(0, 19))), strict=True)
    return np.array(labels), np.array(values) / 20


def decide(missed=1.0, false=1.0, cracks=0.0, intact=0.0):
    return Decide(
        missed_crack_cost=missed,
        false_alarm_cost=false,
        review_share_of_cracks=cracks,
        review_share_of_intact=intact,
    )


@settings(derandomize=True)
@given(validations(), costs, costs)
def test_no_threshold_is_cheaper_and_none_of_equal_cost_is_nearer_to_the_exact_one(validation, missed, false):
    labels, probabilities = validation
    exact = false / (false + missed)

    def cost(threshold):
        called = probabilities >= threshold
        return (labels & ~called).sum() * missed + (~labels & called).sum() * false

    chosen = choose_threshold(labels, probabilities, decide(missed, false))
    others = [*np.linspace(0, 1, 41), *probabilities, *np.nextafter(probabilities, 1), exact]
    assert cost(chosen) <= min(map(cost, others)) + 1e-9
    as_cheap = [abs(other - exact) for other in others if cost(other) <= cost(chosen)]
    assert abs(chosen - exact) <= min(as_cheap) + MARGIN + 1e-9


def test_between_separated_labels_the_threshold_is_the_exact_one():
    labels, probabilities = np.array([True, True, False, False]), np.array([0.9, 0.8, 0.2, 0.1])
    assert choose_threshold(labels, probabilities, decide(missed=1, false=1)) == 0.5
    assert choose_threshold(labels, probabilities, decide(missed=3, false=1)) == 0.25


def test_of_equally_cheap_thresholds_the_nearest_to_the_exact_one_is_taken():
    labels, probabilities = np.array([True, False]), np.array([0.8, 0.7])  # separated from above 0.7 up to 0.8
    assert choose_threshold(labels, probabilities, decide()) == pytest.approx(0.7 + MARGIN)
    assert choose_threshold(np.array([False, True]), np.array([0.1, 0.4]), decide()) == pytest.approx(0.4 - MARGIN)


def test_limits_keep_a_margin_for_the_probabilities_of_the_exported_graph():
    labels, probabilities = np.array([True, False, True, False]), np.array([0.8, 0.7, 0.4, 0.1])
    decision = choose_decision(labels, probabilities, decide())
    verdicts = [[decision.verdict(p + noise) for p in probabilities] for noise in (-5e-4, 0, 5e-4)]
    assert verdicts == [["crack", "review", "review", "intact"]] * 3
    calls = [list(probabilities + noise >= decision.threshold) for noise in (-5e-4, 0, 5e-4)]
    assert calls[0] == calls[1] == calls[2]


def test_expensive_missed_cracks_lower_the_threshold():
    labels, probabilities = np.array([True, False, False]), np.array([0.3, 0.4, 0.35])
    assert choose_threshold(labels, probabilities, decide(missed=1)) > 0.4
    assert choose_threshold(labels, probabilities, decide(missed=9)) <= 0.3


@settings(derandomize=True)
@given(validations(), costs, costs, shares, shares)
def test_the_band_contains_the_threshold_or_is_empty_and_keeps_its_shares(validation, missed, false, cracks, intact):
    labels, probabilities = validation
    decision = choose_decision(labels, probabilities, decide(missed, false, cracks, intact))
    assert decision.review_from <= decision.threshold <= decision.review_to
    verdicts = np.array([decision.verdict(probability) for probability in probabilities])
    assert np.sum(verdicts[labels] == "intact") <= cracks * labels.sum()
    assert np.sum(verdicts[~labels] == "crack") <= intact * (~labels).sum()


@settings(derandomize=True)
@given(validations(), shares, shares)
def test_the_band_is_no_wider_than_the_shares_require(validation, cracks, intact):
    labels, probabilities = validation
    decision = choose_decision(labels, probabilities, decide(1, 1, cracks, intact))
    if decision.review_from < decision.threshold:
        assert np.sum(probabilities[labels] <= decision.review_from + 1.001 * MARGIN) > cracks * labels.sum()
    if decision.review_to > decision.threshold:
        assert np.sum(probabilities[~labels] >= decision.review_to - 1.001 * MARGIN) > intact * (~labels).sum()


def test_one_crack_in_ten_below_the_band_is_more_than_a_share_of_half_a_percent():
    probabilities = np.array([0.05, *np.linspace(0.6, 0.9, 9), *np.linspace(0.1, 0.3, 9), 0.95])
    labels = np.arange(20) < 10
    decision = choose_decision(labels, probabilities, decide(cracks=0.005, intact=0.005))
    assert (decision.review_from, decision.review_to) == pytest.approx((0.05 - MARGIN, 0.95 + MARGIN))
    decision = choose_decision(labels, probabilities, decide(cracks=0.1, intact=0.1))
    assert decision == Decision(0.5, 0.5, 0.5)


def test_verdicts_change_exactly_at_the_ends_of_the_band():
    decision = Decision(threshold=0.5, review_from=0.4, review_to=0.6)
    below = np.nextafter
    verdicts = [decision.verdict(value) for value in (0, below(0.4, 0), 0.4, 0.5, below(0.6, 0), 0.6, 1)]
    assert verdicts == ["intact", "intact", "review", "review", "review", "crack", "crack"]


def test_an_empty_band_does_not_change_the_threshold():
    decision = Decision(threshold=0.5, review_from=0.5, review_to=0.5)
    assert [decision.verdict(value) for value in (np.nextafter(0.5, 0), 0.5)] == ["intact", "crack"]


def test_a_decision_survives_a_round_trip_through_json():
    decision = Decision(threshold=0.31, review_from=0.12, review_to=0.74)
    assert Decision(**json.loads(json.dumps(decision.as_dict()))) == decision
