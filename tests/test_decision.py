import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CracksError
from pipeline.models.decision import (
    MARGIN,
    Decision,
    at_prevalence,
    choose_decision,
    choose_threshold,
    prevalence_weights,
)
from pipeline.params import Decide

costs = st.floats(0.1, 10)
shares = st.floats(0, 0.9)
prevalences = st.floats(0.01, 0.99)


@st.composite
def validations(draw):
    """Labels, both present, and probabilities below 1, many of them equal."""
    rows = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 19) | st.floats(0, 19)), min_size=0, max_size=30))
    labels, values = zip(*rows, (True, draw(st.integers(0, 19))), (False, draw(st.integers(0, 19))), strict=True)
    return np.array(labels), np.array(values) / 20


def decide(missed=1.0, false=1.0, budget=0.15, prevalence=None):
    return Decide(missed_crack_cost=missed, false_alarm_cost=false, review_budget=budget, prevalence=prevalence)


def threshold_of(labels, probabilities, costs):
    weights = prevalence_weights(labels, np.full(len(labels), "walls"), costs.prevalence)
    return choose_threshold(labels, probabilities, weights, costs)


def decision_of(labels, probabilities, costs):
    return choose_decision(labels, probabilities, np.full(len(labels), "walls"), costs)


@settings(derandomize=True)
@given(validations(), costs, costs)
def test_no_threshold_is_cheaper_and_none_of_equal_cost_is_nearer_to_the_exact_one(validation, missed, false):
    labels, probabilities = validation
    exact = false / (false + missed)

    def cost(threshold):
        called = probabilities >= threshold
        return (labels & ~called).sum() * missed + (~labels & called).sum() * false

    chosen = threshold_of(labels, probabilities, decide(missed, false))
    others = [*np.linspace(0, 1, 41), *probabilities, *np.nextafter(probabilities, 1), exact]
    assert cost(chosen) <= min(map(cost, others)) + 1e-9
    as_cheap = [abs(other - exact) for other in others if cost(other) <= cost(chosen)]
    assert abs(chosen - exact) <= min(as_cheap) + MARGIN + 1e-9


def test_between_separated_labels_the_threshold_is_the_exact_one():
    labels, probabilities = np.array([True, True, False, False]), np.array([0.9, 0.8, 0.2, 0.1])
    assert threshold_of(labels, probabilities, decide(missed=1, false=1)) == 0.5
    assert threshold_of(labels, probabilities, decide(missed=3, false=1)) == 0.25


def test_of_equally_cheap_thresholds_the_nearest_to_the_exact_one_is_taken():
    labels, probabilities = np.array([True, False]), np.array([0.8, 0.7])  # separated from above 0.7 up to 0.8
    assert threshold_of(labels, probabilities, decide()) == pytest.approx(0.7 + MARGIN)
    assert threshold_of(np.array([False, True]), np.array([0.1, 0.4]), decide()) == pytest.approx(0.4 - MARGIN)


def test_limits_keep_a_margin_for_the_probabilities_of_the_exported_graph():
    labels, probabilities = np.array([True, False, True, False]), np.array([0.8, 0.7, 0.4, 0.1])
    decision = decision_of(labels, probabilities, decide(budget=0.5))
    verdicts = [[decision.verdict(p + noise) for p in probabilities] for noise in (-5e-4, 0, 5e-4)]
    assert verdicts == [["crack", "review", "review", "intact"]] * 3
    calls = [list(probabilities + noise >= decision.threshold) for noise in (-5e-4, 0, 5e-4)]
    assert calls[0] == calls[1] == calls[2]


def test_expensive_missed_cracks_lower_the_threshold():
    labels, probabilities = np.array([True, False, False]), np.array([0.3, 0.4, 0.35])
    assert threshold_of(labels, probabilities, decide(missed=1)) > 0.4
    assert threshold_of(labels, probabilities, decide(missed=9)) <= 0.3


def band_of(decision, probabilities):
    return np.array([decision.verdict(probability) == "review" for probability in probabilities])


@settings(derandomize=True, max_examples=300)
@given(validations(), costs, costs, shares, prevalences, st.integers(1, 3))
def test_the_band_contains_the_threshold_and_keeps_the_budget_in_each_data_set(
    validation, missed, false, budget, prevalence, n_datasets
):
    labels, probabilities = validation
    datasets = np.arange(len(labels)) % n_datasets
    costs = decide(missed, false, budget, prevalence)
    decision = choose_decision(labels, probabilities, datasets, costs)
    assert decision.review_from <= decision.threshold <= decision.review_to
    weights, in_review = prevalence_weights(labels, datasets, prevalence), band_of(decision, probabilities)
    for part in (datasets >= 0, *(datasets == number for number in range(n_datasets))):
        if part.sum() * budget >= 1 or part.all():
            assert weights[part & in_review].sum() <= budget * weights[part].sum() + 1e-9


@settings(derandomize=True, max_examples=300)
@given(validations(), costs, costs, shares)
def test_no_band_of_that_order_within_the_budget_catches_more_mistakes_and_none_narrower_as_many(
    validation, missed, false, budget
):
    labels, probabilities = validation
    decision = decision_of(labels, probabilities, decide(missed, false, budget))
    called = probabilities >= decision.threshold
    is_wrong, in_review = called != labels, band_of(decision, probabilities)
    cost = np.where(called, (1 - probabilities) * false, probabilities * missed)
    narrowest = min((cost[is_wrong & in_review]), default=np.inf)
    for level in np.unique(cost):
        if (cost >= level).sum() <= budget * len(labels):
            assert (is_wrong & (cost >= level)).sum() <= (is_wrong & in_review).sum()
    assert (cost[in_review] >= narrowest).all()


def test_of_four_mistakes_a_budget_of_a_fifth_takes_the_two_nearest_to_the_threshold_in_cost():
    probabilities = np.array(
        [0.05, 0.35, 0.45, 0.52, 0.58, 0.9, *np.linspace(0.01, 0.2, 7), *np.linspace(0.8, 0.99, 7)]
    )
    labels = np.array([True, True, False, True, False, False, *[False] * 7, *[True] * 7])
    decision = decision_of(labels, probabilities, decide(budget=0.2))  # of 20 images 4: 0.52, 0.45, 0.58 and 0.35
    assert band_of(decision, probabilities).nonzero()[0].tolist() == [1, 2, 3, 4]
    assert (decision.review_from, decision.review_to) == pytest.approx((0.35 - MARGIN, 0.65 + MARGIN))
    decision = decision_of(labels, probabilities, decide(budget=0.19))  # 3: the crack at 0.35 is missed
    assert band_of(decision, probabilities).nonzero()[0].tolist() == [2, 3, 4]
    assert decision.review_from == pytest.approx(0.42 - MARGIN)  # as likely to be wrong as the false alarm at 0.58
    expensive = decision_of(labels, probabilities, decide(missed=3, budget=0.19))
    assert band_of(expensive, probabilities)[1]  # a missed crack that costs three false alarms is looked at first


def test_a_data_set_of_doubtful_images_does_not_get_the_whole_budget_of_one_that_is_easy():
    sure, unsure = np.repeat([0.001, 0.999], 500), np.linspace(0.3, 0.7, 100)
    probabilities = np.concatenate([sure, unsure])
    labels = np.concatenate([sure > 0.5, np.arange(100) % 2 == 0])
    datasets = np.repeat(["metu", "sdnet"], [1000, 100])
    decision = choose_decision(labels, probabilities, datasets, decide())
    assert 10 <= band_of(decision, unsure).sum() <= 15
    together = choose_decision(labels, probabilities, np.full(1100, "both"), decide())
    assert band_of(together, unsure).all()


def test_without_a_mistake_or_without_a_budget_nothing_is_for_review():
    labels, probabilities = np.arange(40) < 20, np.linspace(0.9, 0.1, 40)
    decision = decision_of(labels, probabilities, decide())
    assert decision == Decision(0.5, 0.5, 0.5, 0.5, 0.15)
    assert not band_of(decision_of(~labels, probabilities, decide(budget=0)), probabilities).any()


def test_a_decision_records_the_share_of_cracks_that_is_stated_else_that_of_the_validation_images():
    labels, probabilities = np.arange(40) < 10, np.linspace(0.9, 0.1, 40)
    assert decision_of(labels, probabilities, decide()).prevalence == 0.25
    assert decision_of(labels, probabilities, decide(prevalence=0.4)).prevalence == 0.4


def test_weights_give_cracks_the_stated_share_in_each_data_set():
    labels = np.array([True, False, False, False, True, True])
    datasets = np.array(["walls"] * 4 + ["decks", "piers"])
    weights = prevalence_weights(labels, datasets, 0.5)
    assert weights.tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3, 0.5, 0.5])
    assert prevalence_weights(labels, datasets, None).tolist() == [1] * 6


def test_the_threshold_is_that_of_the_stated_prevalence():
    # At 0.3 four intact images and a crack, at 0.7 four cracks and an intact image, far more sound images below.
    probabilities = np.array([0.3] * 5 + [0.7] * 5 + [0.1] * 30)
    labels = np.array([False] * 4 + [True] + [True] * 4 + [False] + [False] * 30)
    assert 0.3 < threshold_of(labels, probabilities, decide()) <= 0.7
    # Of 40 images 5 are cracks. With nine in ten a missed crack weighs 7.2, a false alarm 4 / 35: all of 0.3 count.
    assert threshold_of(labels, probabilities, decide(prevalence=0.9)) <= 0.3
    assert threshold_of(labels, probabilities, decide(prevalence=0.001)) > 0.7


@pytest.mark.parametrize(
    ("probability", "assumed", "stated", "expected"),
    [
        (0.5, 0.5, 0.2, 0.2),  # odds 1, times (1/4) / 1
        (0.2, 0.1, 0.5, 9 / 13),  # odds 1/4, times 1 / (1/9) = 9/4
        (0.8, 0.5, 0.1, 4 / 13),  # odds 4, times 1/9
        (0.0, 0.1, 0.9, 0.0),
        (1.0, 0.9, 0.1, 1.0),
    ],
)
def test_a_probability_is_corrected_by_the_ratio_of_the_prior_odds(probability, assumed, stated, expected):
    assert at_prevalence(np.array([probability]), assumed, stated)[0] == pytest.approx(expected)


@settings(derandomize=True)
@given(st.lists(st.floats(0, 1, width=32), min_size=1), prevalences, prevalences, prevalences)
def test_corrected_probabilities_rise_with_the_prevalence_keep_their_order_and_stay_where_it_is_the_assumed_one(
    values, assumed, one, other
):
    probabilities = np.sort(np.array(values, np.float32))
    low, high = (at_prevalence(probabilities, assumed, stated) for stated in sorted((one, other)))
    assert (low <= high).all()
    assert (np.diff(low) >= 0).all()
    assert low.dtype == np.float32
    np.testing.assert_allclose(at_prevalence(probabilities, assumed, assumed), probabilities, rtol=1e-6)
    back = at_prevalence(at_prevalence(np.array([0.3]), assumed, one), one, assumed)
    assert back[0] == pytest.approx(0.3, abs=1e-3)


def test_a_decision_without_a_prevalence_cannot_be_corrected_and_says_so():
    with pytest.raises(CracksError, match="not recorded what share of cracks this model assumes"):
        Decision(0.5, 0.4, 0.6).correction(0.1)
    assert Decision(0.5, 0.4, 0.6).as_dict() == {"threshold": 0.5, "review_from": 0.4, "review_to": 0.6}


def test_verdicts_change_exactly_at_the_ends_of_the_band():
    decision = Decision(threshold=0.5, review_from=0.4, review_to=0.6)
    below = np.nextafter
    verdicts = [decision.verdict(value) for value in (0, below(0.4, 0), 0.4, 0.5, below(0.6, 0), 0.6, 1)]
    assert verdicts == ["intact", "intact", "review", "review", "review", "crack", "crack"]


def test_an_empty_band_does_not_change_the_threshold():
    decision = Decision(threshold=0.5, review_from=0.5, review_to=0.5)
    assert [decision.verdict(value) for value in (np.nextafter(0.5, 0), 0.5)] == ["intact", "crack"]


def test_a_decision_survives_a_round_trip_through_json():
    decision = Decision(threshold=0.31, review_from=0.12, review_to=0.74, prevalence=0.2, review_budget=0.1)
    assert Decision(**json.loads(json.dumps(decision.as_dict()))) == decision
