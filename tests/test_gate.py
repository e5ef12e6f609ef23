"""Each rule has a case in which it alone refuses; worse evidence never turns a no into a yes."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE
from pipeline.params import Promote
from pipeline.registry.evidence import Change, Comparison, Evidence, Lineage, Operations, OwnScores, Unknown
from pipeline.registry.gate import NOT_MEASURED, SKIPPED, decide

RULES = Promote.model_validate(
    {
        "approval": "automatic",
        "floors": {"f1": 0.9, "recall": 0.85},
        "max_ece": 0.05,
        "min_slice_recall": 0.6,
        "min_groups": 400,
        "margins": {"test": 0.01, "slice": 0.03, "external": 0.02},
        "budgets": {"p95_ms": 100, "resident_mb": 500, "size_mb": 50},
    }
)
OWN = OwnScores(
    n_images=1000,
    n_groups=800,
    scores={"f1": 0.95, "recall": 0.94, "ece": 0.02},
    slice_recalls={"surface deck": 0.7, "surface wall": 0.9},
    external_aurocs={"bridge": 0.9},
)
COMPARISON = Comparison(
    version="3",
    n_images=900,
    n_groups=700,
    n_groups_left_out=100,
    test=Change(900, 0.955, 0.95),
    low=-0.002,
    confidence=0.93,
    slices={"surface deck": Change(300, 0.91, 0.92)},
    external={"external test set bridge": Change(500, 0.71, 0.70)},
)
OPERATIONS = Operations(golden_difference=1e-5, p95_ms=20.0, resident_mb=300.0, size_mb=14.0)
LINEAGE = Lineage(
    data_hashes={"dvc.data/walls": "aaa"},
    contract="green",
    commit="0" * 40,
    is_dirty=False,
    changed_files="",
    dirty_is_allowed=False,
    is_demo=False,
    demo_is_allowed=False,
    replaces_real=True,
    was_rolled_back=False,
    left_out_aurocs={"sdnet/Decks": 0.82},
)
TRACER = Change(64, 0.73, 0.74)
GOOD = Evidence(OWN, {"production": COMPARISON, "best": COMPARISON}, TRACER, OPERATIONS, LINEAGE)
NAN = math.nan


def with_own(**changes):
    return replace(GOOD, own=replace(OWN, **changes))


def against(role, **changes):
    return replace(GOOD, comparisons=GOOD.comparisons | {role: replace(COMPARISON, **changes)})


def with_operations(**changes):
    return replace(GOOD, operations=replace(OPERATIONS, **changes))


def with_lineage(**changes):
    return replace(GOOD, lineage=replace(LINEAGE, **changes))


def failing(evidence, rules=RULES):
    return [result.name for result in decide(evidence, rules).failed]


def test_good_evidence_passes_every_rule():
    judgement = decide(GOOD, RULES)
    assert judgement.passed
    assert [result.name for result in judgement.results] == [
        "floors",
        "comparison with production",
        "parts against production",
        "comparison with best",
        "parts against best",
        "tracer",
        "operations",
        "lineage",
        "sources",
    ]


@pytest.mark.parametrize(
    ("rule", "evidence", "words"),
    [
        ("floors", with_own(scores=OWN.scores | {"f1": 0.8999}), "f1 0.8999 is under 0.9"),
        ("floors", with_own(scores=OWN.scores | {"recall": None}), "recall missing is under 0.85"),
        ("floors", with_own(scores={"f1": 0.95, "recall": 0.94}), "ECE missing is over 0.05"),
        ("floors", with_own(scores=OWN.scores | {"ece": 0.051}), "ECE 0.0510 is over 0.05"),
        ("floors", with_own(slice_recalls={"surface deck": 0.59}), "recall of surface deck 0.5900 is under 0.6"),
        ("floors", replace(GOOD, own=Unknown("no graph")), "could not be checked: no graph"),
        ("comparison with production", against("production", low=-0.01), "it may be worse by 0.0100, at most 0.01"),
        ("comparison with best", against("best", low=-0.02), "it may be worse by 0.0200"),
        ("comparison with best", against("best", low=None), "it may be worse by missing"),
        ("comparison with production", against("production", n_groups=399), "399 groups are left to compare on, 400"),
        (
            "parts against production",
            against("production", slices={"surface deck": Change(300, 0.88, 0.911)}),
            "surface deck falls from 0.9110 to 0.8800 on 300 images, by more than 0.03",
        ),
        (
            "parts against best",
            against("best", external={"external test set bridge": Change(500, 0.679, 0.7)}),
            "external test set bridge falls from 0.7000 to 0.6790 on 500 images, by more than 0.02",
        ),
        (
            "parts against best",
            against("best", external={"external test set bridge": Change(0, None, None)}),
            "external test set bridge falls from missing to missing on 0 images",
        ),
        (
            "tracer",
            replace(GOOD, tracer=Change(64, 0.679, 0.74)),
            "its crack lines are worse by 0.0610, at most 0.05 is allowed; F1 of crack lines 0.6790 against 0.7400 of "
            "the better of production's tracer and the one that ships, on 64 images with drawn cracks",
        ),
        ("tracer", replace(GOOD, tracer=Change(64, NAN, 0.74)), "are worse by nan"),
        ("tracer", replace(GOOD, tracer=Unknown("it is damaged")), "could not be checked: it is damaged"),
        ("operations", with_operations(golden_difference=0.002), "difference on golden images 0.002 is over 0.001"),
        ("operations", with_operations(p95_ms=101), "p95 latency 101 ms is over 100 ms"),
        ("operations", with_operations(resident_mb=501), "memory 501 MB is over 500 MB"),
        ("operations", with_operations(size_mb=None), "size missing MB is over 50 MB"),
        ("operations", replace(GOOD, operations=Unknown("killed")), "could not be checked: killed"),
        ("lineage", with_lineage(data_hashes={}), "the hashes of its data are not known"),
        ("lineage", with_lineage(contract="failed"), "its data contract is failed, not passed"),
        ("lineage", with_lineage(commit="unknown"), "the commit of its code is not known"),
        ("lineage", with_lineage(is_dirty=True), "its code differed from the commit (commit it"),
        ("lineage", with_lineage(is_dirty=True, changed_files="a.py"), "its code differed from the commit in a.py"),
        ("lineage", with_lineage(is_dirty=None), "its code differed from the commit"),
        ("lineage", with_lineage(is_demo=True), "trained on drawn images (--demo allows that"),
        ("lineage", with_lineage(is_demo=True), "a model of drawn images does not replace one of real concrete"),
        ("lineage", with_lineage(is_demo=True, replaces_real=None), "does not replace one of real concrete"),
        ("lineage", with_lineage(is_demo=None, replaces_real=False), "not known whether it was trained on the demo"),
        ("lineage", with_lineage(was_rolled_back=True), "production was taken back from this very version"),
        ("lineage", replace(GOOD, lineage=Unknown("run is gone")), "could not be checked: run is gone"),
        (
            "sources",
            with_lineage(left_out_aurocs={"sdnet/Walls": 0.6999}),
            "AUROC 0.6999 on sdnet/Walls, which it was not trained on, is under 0.7",
        ),
        ("sources", with_own(external_aurocs={"bridge": NAN}), "AUROC nan on bridge"),
    ],
)
def test_each_rule_refuses_alone_and_says_why(rule, evidence, words):
    (failed,) = decide(evidence, RULES).failed
    assert failed.name == rule
    assert words in failed.text


@pytest.mark.parametrize("role", ["production", "best"])
def test_a_comparison_that_could_not_be_made_fails_as_a_whole(role):
    evidence = replace(GOOD, comparisons=GOOD.comparisons | {role: Unknown("version 3 cannot be fetched")})
    assert failing(evidence) == [f"comparison with {role}", f"parts against {role}"]


def test_the_first_model_is_compared_with_nothing_and_the_judgement_says_so():
    judgement = decide(replace(GOOD, comparisons={}), RULES)
    assert judgement.passed
    assert [result.text for result in judgement.results if result.name in ("comparison", "parts")] == [SKIPPED] * 2


def test_the_first_model_still_has_to_keep_the_floors():
    assert failing(replace(with_own(scores={}), comparisons={})) == ["floors"]


def test_the_worst_source_that_it_was_not_trained_on_is_named():
    *_, result = decide(GOOD, RULES).results
    assert result.text == "AUROC 0.8200 on sdnet/Decks, the worst of the sources that it was not trained on"


@pytest.mark.parametrize("bridge", [0.9, 0.6])
def test_sources_with_too_few_images_are_named_whether_or_not_the_others_are_good_enough(bridge):
    own = replace(OWN, too_small=("tunnel",), external_aurocs={"bridge": bridge})
    named = with_lineage(not_left_out="sdnet/Roof, metu").lineage
    end = "; not measured, because of too few images: sdnet/Roof, metu, tunnel"
    result = decide(replace(GOOD, own=own, lineage=named), RULES).results[-1]
    assert result.text.endswith(end)
    assert result.passed == (bridge > 0.7)
    none = replace(GOOD, own=replace(own, external_aurocs={}), lineage=replace(named, left_out_aurocs={}))
    assert decide(none, RULES).results[-1].text == NOT_MEASURED + end


def test_if_no_such_source_was_measured_it_is_said_that_other_structures_are_not_known_and_not_refused():
    unknown = replace(GOOD, own=replace(OWN, external_aurocs={}), lineage=replace(LINEAGE, left_out_aurocs={}))
    judgement = decide(unknown, RULES)
    assert judgement.passed
    assert "it is not known how the model does on structures" in judgement.results[-1].text


def test_the_tracer_in_use_and_a_better_one_pass():
    assert failing(replace(GOOD, tracer=None)) == failing(replace(GOOD, tracer=Change(64, 0.8, 0.6))) == []


def test_a_demo_never_goes_to_production_but_to_try_promotion_out_where_nothing_real_is():
    assert failing(with_lineage(is_demo=True, replaces_real=False)) == ["lineage"]
    assert failing(with_lineage(is_demo=True, replaces_real=False, demo_is_allowed=True)) == []
    assert failing(with_lineage(is_demo=True, replaces_real=True, demo_is_allowed=True)) == ["lineage"]


def test_dirty_code_that_a_person_allows_passes_and_stays_visible():
    judgement = decide(with_lineage(is_dirty=True, commit="unknown", dirty_is_allowed=True), RULES)
    assert judgement.passed
    assert "with changes that a person allowed" in judgement.results[-2].text


def test_a_fall_within_the_margin_is_allowed_on_a_part_but_a_possible_one_of_the_margin_is_not_as_a_whole():
    assert failing(against("production", slices={"surface deck": Change(300, 0.5, 0.5299)})) == []
    assert failing(against("production", low=-0.01)) == ["comparison with production"]


def numbers_of(evidence):
    """Yield (place, value) of every number that a rule looks at; a place is (part, name)."""
    for name in ("f1", "recall", "ece"):
        yield ("own", name), evidence.own.scores[name]
    for field in fields(Operations):
        yield ("operations", field.name), getattr(evidence.operations, field.name)
    for role, comparison in evidence.comparisons.items():
        yield (role, "low"), comparison.low


def changed(evidence, place, value):
    part, name = place
    if part == "own":
        return replace(evidence, own=replace(evidence.own, scores=evidence.own.scores | {name: value}))
    if part == "operations":
        return replace(evidence, operations=replace(evidence.operations, **{name: value}))
    comparison = replace(evidence.comparisons[part], **{name: value})
    return replace(evidence, comparisons=evidence.comparisons | {part: comparison})


PLACES = [place for place, _ in numbers_of(GOOD)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [None, NAN])
def test_a_figure_that_is_missing_or_no_number_fails(place, value):
    assert len(failing(changed(GOOD, place, value))) == 1


figures = st.one_of(st.none(), st.just(NAN), st.floats(-1, 1000))


@given(
    start=st.fixed_dictionaries(dict.fromkeys(PLACES, figures)),
    place=st.sampled_from(PLACES),
    step=st.floats(0, 1000),
)
def test_worse_evidence_never_turns_a_no_into_a_yes(start, place, step):
    evidence = GOOD
    for where, value in start.items():
        evidence = changed(evidence, where, value)
    value = start[place]
    higher_is_worse = place[0] == "operations" or place[1] == "ece"
    worse = changed(evidence, place, None if value is None else value + (step if higher_is_worse else -step))
    assert set(failing(evidence)) <= set(failing(worse))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2000))
def test_the_gate_says_yes_to_nothing_that_may_be_worse_by_the_margin(low, fall, n_groups):
    evidence = against("production", low=-low, n_groups=n_groups, slices={"surface deck": Change(300, 0.9 - fall, 0.9)})
    if decide(evidence, RULES).passed:
        assert low < 0.01
        assert fall <= 0.03 + 1e-9
        assert n_groups >= 400


def test_golden_images_may_differ_by_rounding_only():
    assert failing(with_operations(golden_difference=MAX_GOLDEN_DIFFERENCE)) == []
