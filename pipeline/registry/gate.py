"""The promotion gate: seven rules that decide whether a version may go to production.

The functions are pure: they take evidence and limits, return a judgement, and change nothing. A rule fails where its
evidence is `Unknown`, or a figure is None or NaN; only the one on sources passes where none was measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE
from pipeline.params import Promote
from pipeline.registry.evidence import Change, Comparison, Evidence, Figure, Lineage, Operations, OwnScores, Unknown

NOT_MEASURED = (
    "not measured: it is not known how the model does on structures that it was not trained on "
    "(evaluate.leave_one_source_out in params.yaml measures it, or an external test set)"
)
SKIPPED = "skipped: nothing has been in production, so there is nothing to compare with"


@dataclass(frozen=True)
class RuleResult:
    """Outcome of one rule: passed or not, an explanation, and the figures it is based on."""

    name: str
    passed: bool
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """Outcome of all rules."""

    results: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return not self.failed

    @property
    def failed(self) -> tuple[RuleResult, ...]:
        """Results of the rules that failed."""
        return tuple(result for result in self.results if not result.passed)


def decide(evidence: Evidence, rules: Promote) -> Judgement:
    """Apply every rule to the evidence; the model may go to production if all pass."""
    results = [floors(evidence.own, rules)]
    if evidence.comparisons:
        for role, comparison in evidence.comparisons.items():
            results.append(not_worse(role, comparison, rules))
            results.append(no_part_degrades(role, comparison, rules))
    else:
        results += [RuleResult("comparison", True, SKIPPED), RuleResult("parts", True, SKIPPED)]
    results += [tracer(evidence.tracer, rules), operations(evidence.operations, rules), lineage(evidence.lineage)]
    return Judgement((*results, unseen_sources(evidence, rules)))


def floors(own: OwnScores | Unknown, rules: Promote) -> RuleResult:
    """Rule 1: the test scores, the calibration error and the recall of each slice are within their limits."""
    if isinstance(own, Unknown):
        return _unknown("floors", own)
    problems = [
        *(f"{name} {_shown(own.scores.get(name))} is under {floor:g}" for name, floor in rules.floors.items()
          if not _at_least(own.scores.get(name), floor)),
        *(f"recall of {name} {_shown(recall)} is under {rules.min_slice_recall:g}"
          for name, recall in own.slice_recalls.items() if not _at_least(recall, rules.min_slice_recall)),
    ]  # fmt: skip
    if not _at_most(own.scores.get("ece"), rules.max_ece):
        problems.append(f"ECE {_shown(own.scores.get('ece'))} is over {rules.max_ece:g}")
    kept = ", ".join(f"{name} {_shown(own.scores.get(name))}" for name in (*rules.floors, "ece"))
    good = f"{kept}, and {len(own.slice_recalls)} slices, on {own.n_images} test images of {own.n_groups} groups"
    figures = {**own.scores, **{f"recall of {name}": recall for name, recall in own.slice_recalls.items()}}
    return _result("floors", problems, good, figures)


def not_worse(role: str, comparison: Comparison | Unknown, rules: Promote) -> RuleResult:
    """Rule 2: with 97.5 % confidence the challenger is worse by less than the margin, on enough groups."""
    name = f"comparison with {role}"
    if isinstance(comparison, Unknown):
        return _unknown(name, comparison)
    problems = []
    if not comparison.n_groups >= rules.min_groups:
        problems.append(f"{comparison.n_groups} groups are left to compare on, {rules.min_groups} are needed")
    margin = rules.margins.test
    if not (comparison.low is not None and comparison.low > -margin):
        problems.append(f"it may be worse by {_shown(_negative(comparison.low))}, at most {margin:g} is allowed")
    facts = (
        f"weighted accuracy {_shown(comparison.test.challenger)} against {_shown(comparison.test.incumbent)} of "
        f"version {comparison.version} on {comparison.n_images} images of {comparison.n_groups} groups "
        f"({comparison.n_groups_left_out} left out): better with a confidence of {_percent(comparison.confidence)}, "
        f"not worse than {_shown(comparison.low, signed=True)}"
    )
    shown = ("version", "n_images", "n_groups", "n_groups_left_out", "low", "confidence")
    figures = {key: getattr(comparison, key) for key in shown}
    figures |= {"challenger": comparison.test.challenger, "incumbent": comparison.test.incumbent}
    return _result(name, problems, facts, figures, facts)


def no_part_degrades(role: str, comparison: Comparison | Unknown, rules: Promote) -> RuleResult:
    """Rule 3: on no test slice and no external test set is the challenger worse by more than the margin."""
    name = f"parts against {role}"
    if isinstance(comparison, Unknown):
        return _unknown(name, comparison)
    parts = [
        *((part, change, rules.margins.slice) for part, change in comparison.slices.items()),
        *((part, change, rules.margins.external) for part, change in comparison.external.items()),
    ]
    problems = [
        f"{part} falls from {_shown(change.incumbent)} to {_shown(change.challenger)} on {change.n_images} images, by "
        f"more than {margin:g}"
        for part, change, margin in parts
        if not _at_most(_fall(change), margin)
    ]
    falls = [fall for _, change, _ in parts if (fall := _fall(change)) is not None]
    good = f"{len(comparison.slices)} slices and {len(comparison.external)} external test sets"
    good += f", the largest fall is {_shown(max(0.0, *falls))}" if falls else ""
    return _result(name, problems, good, {part: _negative(_fall(change)) for part, change, _ in parts})


def tracer(change: Change | Unknown | None, rules: Promote) -> RuleResult:
    """Rule 4: F1 of lines on drawn cracks is at most the margin below that of production's and the shipped tracer."""
    if change is None:
        return RuleResult("tracer", True, "the tracer of crack lines is the one in use")
    if isinstance(change, Unknown):
        return _unknown("tracer", change)
    fall, margin = _fall(change), rules.margins.tracer
    problems = [f"its crack lines are worse by {_shown(fall)}, at most {margin:g} is allowed"]
    facts = (
        f"F1 of crack lines {_shown(change.challenger)} against {_shown(change.incumbent)} of the better of "
        f"production's tracer and the one that ships, on {change.n_images} images with drawn cracks"
    )
    return _result("tracer", [] if _at_most(fall, margin) else problems, facts, asdict(change), facts)


def operations(found: Operations | Unknown, rules: Promote) -> RuleResult:
    """Rule 5: the served model reproduces its golden images and is within the budgets of latency, memory and size."""
    if isinstance(found, Unknown):
        return _unknown("operations", found)
    limits = (
        ("difference on golden images", found.golden_difference, MAX_GOLDEN_DIFFERENCE, ""),
        ("p95 latency", found.p95_ms, rules.budgets.p95_ms, " ms"),
        ("memory", found.resident_mb, rules.budgets.resident_mb, " MB"),
        ("size", found.size_mb, rules.budgets.size_mb, " MB"),
    )
    problems = [
        f"{name} {_measured(value)}{unit} is over {limit:g}{unit}"
        for name, value, limit, unit in limits
        if not _at_most(value, limit)
    ]
    good = ", ".join(f"{name} {_measured(value)}{unit}" for name, value, _, unit in limits)
    return _result("operations", problems, good, {name: value for name, value, _, _ in limits})


def lineage(found: Lineage | Unknown) -> RuleResult:
    """Rule 6: data, contract and code are known; it is no demo; the version was not rolled back."""
    if isinstance(found, Unknown):
        return _unknown("lineage", found)
    good = f"{len(found.data_hashes)} data hashes, contract {found.contract}, commit {found.commit[:12]}"
    if found.is_dirty is not False and found.dirty_is_allowed:
        good += " with changes that a person allowed"
    figures = {**found.data_hashes, "commit": found.commit, "contract": found.contract}
    return _result("lineage", list(_lineage_problems(found)), good, figures)


def unseen_sources(evidence: Evidence, rules: Promote) -> RuleResult:
    """Rule 7: on the worst source that it was not trained on, AUROC keeps its minimum; not refused if unknown.

    The text names the sources that have too few images to be measured.
    """
    own, found = evidence.own, evidence.lineage
    aurocs: dict[str, float] = {}
    small: list[str] = []
    if not isinstance(found, Unknown):
        aurocs |= found.left_out_aurocs
        small += [found.not_left_out] if found.not_left_out else []
    if not isinstance(own, Unknown):
        aurocs |= own.external_aurocs
        small += own.too_small
    not_measured = [f"not measured, because of too few images: {', '.join(small)}"] if small else []
    if not aurocs:
        return RuleResult("sources", True, "; ".join([NOT_MEASURED, *not_measured]))
    worst = min(aurocs, key=lambda name: aurocs[name])
    problems = [
        f"AUROC {auroc:.4f} on {name}, which it was not trained on, is under {rules.min_source_auroc:g}"
        for name, auroc in aurocs.items()
        if not _at_least(auroc, rules.min_source_auroc)
    ]
    good = f"AUROC {aurocs[worst]:.4f} on {worst}, the worst of the sources that it was not trained on"
    return _result("sources", problems, "; ".join([good, *not_measured]), aurocs, *not_measured)


def _lineage_problems(found: Lineage) -> Iterator[str]:
    if not found.data_hashes:
        yield "the hashes of its data are not known"
    if found.contract not in ("passed", "green"):  # "green" is what version 0.1.0 wrote
        yield f"its data contract is {found.contract}, not passed"
    if not found.dirty_is_allowed:
        if found.commit == "unknown":
            yield "the commit of its code is not known (--allow-dirty takes it as it is)"
        elif found.is_dirty is not False:
            files = f" in {found.changed_files}" * bool(found.changed_files)
            yield f"its code differed from the commit{files} (commit it and run again; --allow-dirty takes it as it is)"
    if found.is_demo is None:
        yield "it is not known whether it was trained on the demo"
    if found.is_demo and not found.demo_is_allowed:
        yield "it was trained on drawn images (--demo allows that, unless a model of real concrete is in production)"
    if found.is_demo is not False and found.replaces_real is not False:
        yield "a model of drawn images does not replace one of real concrete"
    if found.was_rolled_back:
        yield "production was taken back from this very version; `cracks rollback --to` can bring it back"


def _result(
    name: str, problems: list[str], good: str, figures: Mapping[str, Any], facts: str | None = None
) -> RuleResult:
    text = "; ".join([*problems, *([facts] if facts else [])]) if problems else good
    return RuleResult(name, not problems, text, figures)


def _unknown(name: str, unknown: Unknown) -> RuleResult:
    return RuleResult(name, False, f"could not be checked: {unknown.reason}")


def _fall(change: Change) -> Figure:
    if change.challenger is None or change.incumbent is None:
        return None
    return change.incumbent - change.challenger


# NaN fails both comparisons, as intended: the value is unknown.
def _at_least(value: Figure, limit: float) -> bool:
    return value is not None and value >= limit


def _at_most(value: Figure, limit: float) -> bool:
    return value is not None and value <= limit


def _negative(value: Figure) -> Figure:
    return None if value is None else -value


def _shown(value: Figure, *, signed: bool = False) -> str:
    return "missing" if value is None else f"{value:{'+' if signed else ''}.4f}"


def _measured(value: Figure) -> str:
    return "missing" if value is None else f"{value:.3g}"


def _percent(value: Figure) -> str:
    return "missing" if value is None else f"{100 * value:.1f} %"
