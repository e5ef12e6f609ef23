"""Promote a version that passes the gate, or roll back to an earlier one; every decision is recorded."""

import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.errors import CracksError, RefusedError
from pipeline.params import Params
from pipeline.project import DATASETS, MANIFEST, project_root
from pipeline.registry import runs, tracking
from pipeline.registry.collect_evidence import collect, fetched, known, lineage_of, operations_of
from pipeline.registry.evidence import Comparison, Evidence
from pipeline.registry.gate import Judgement, RuleResult, decide, operations
from pipeline.registry.history import History, opened
from pipeline.registry.promotion_records import Outcome, Record, best_of, rolled_back, stack_of
from pipeline.registry.score_versions import TestSet, read_test_set
from pipeline.registry.versions import CHALLENGER, PRODUCTION, find_version, is_demo

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Decided:
    """A decision with the result of each rule."""

    record: Record
    results: tuple[RuleResult, ...]

    @property
    def outcome(self) -> Outcome:
        """The outcome: promoted, refused or pending; rolled back for a rollback."""
        return self.record.outcome


def run(
    params: Params,
    version: str | None,
    *,
    dry_run: bool,
    allow_dirty: bool,
    by: str,
    allow_demo: bool = False,
    approved: bool = False,
) -> Decided:
    """Apply the gate to a version and, if all rules pass, move the alias `production` to it.

    `version` is a number or alias; None is the challenger. A `dry_run` moves and records nothing. `allow_dirty` accepts
    code that differs from its commit, which is recorded with the decision; `allow_demo` a model of drawn images, to try
    promotion out: photos are never scored with it. `by` is the user who requests it; `approved` says whether a person
    approved it, where params require that.

    Raises CracksError if there is no such version, the current test images are missing, or what was in production has
    been deleted while a version before it can come back; RefusedError if it is in production already; UnavailableError
    if the registry does not answer, or another promotion is under way.
    """
    root = project_root()
    with opened(params.register_as.name) as history:
        if not dry_run:
            history.close_interrupted()
        challenger = get_version(history, version or CHALLENGER)
        number, production = str(challenger.version), history.production()
        if number == production:
            raise RefusedError(f"Version {number} is in production already. Nothing has moved.")
        moves, existing = history.moves(), history.versions()
        if production is None and any(former in existing for former in stack_of(moves)):
            find_version(history.client, history.model, PRODUCTION)  # an error if what was there has been deleted
        test_set = read_test_set(root / MANIFEST, root / DATASETS)
        lineage = lineage_of(
            history.client,
            challenger,
            None if production is None else get_version(history, production),
            dirty_is_allowed=allow_dirty,
            demo_is_allowed=allow_demo,
            was_rolled_back=number in rolled_back(moves),
        )
        incumbents = incumbents_of(number, production, best_of(moves, existing))
        evidence, predictions = collect(history.model, number, incumbents, lineage, test_set, params.decide)
        judgement = decide(evidence, params.promote)
        record = Record(
            action="promotion",
            outcome=outcome_of(judgement, needs_approval=params.promote.approval == "manual" and not approved),
            version=number,
            previous=production,
            by=by,
            text="; ".join(f"{result.name}: {result.text}" for result in judgement.failed),
            best=best_after(number, incumbents, evidence),
        )
        if not dry_run:
            details = details_of(record, judgement.results, params) | {
                "test_set": describe(test_set),
                "allow_dirty": allow_dirty,
                "allow_demo": allow_demo,
                "approved": approved,
            }
            record = save_decision(history, record, details, predictions)
        return Decided(record, judgement.results)


def approve(params: Params, version: str, *, allow_dirty: bool, by: str, allow_demo: bool = False) -> Decided:
    """Approve a version whose promotion is pending, and run that promotion again.

    Raises CracksError if no promotion of it is pending, RefusedError if it is in production already, UnavailableError
    if the registry does not answer, or another promotion is under way.
    """
    with opened(params.register_as.name) as history:
        latest = next((record for record in history.records() if record.version == version), None)
    if latest is None or latest.outcome != "pending":
        state = "nothing was decided about it" if latest is None else f"its latest decision is: {latest.outcome}"
        raise CracksError(
            f"Version {version} does not wait for approval, {state}. Run `cracks promote {version}` first."
        )
    return run(params, version, dry_run=False, allow_dirty=allow_dirty, by=by, allow_demo=allow_demo, approved=True)


def rollback(params: Params, to: str | None, reason: str, by: str) -> Decided:
    """Roll back to a version that was in production before, if it can still be served; `to` None is the one before.

    Raises CracksError if there is no such version to go back to, RefusedError if it is a demo and the current one is
    not, UnavailableError if the registry does not answer, or a promotion is under way.
    """
    root = project_root()
    with opened(params.register_as.name) as history, tempfile.TemporaryDirectory() as scratch:
        history.close_interrupted()
        production = history.production()
        target = rollback_target(history.moves(), history.versions(), production, to)
        if is_demo(get_version(history, target)) and production and not is_demo(get_version(history, production)):
            raise RefusedError(
                f"Version {target} was trained on drawn images, and version {production} was not. Nothing has moved. "
                "`cracks history` shows what else was in production, --to names it."
            )
        test_set = read_test_set(root / MANIFEST, root / DATASETS)
        served = fetched(history.model, target, Path(scratch))
        result = operations(known(operations_of, served, test_set), params.promote)
        record = Record("rollback", "rolled back" if result.passed else "refused", target, production, by, reason)
        record = save_decision(history, record, details_of(record, (result,), params))
        return Decided(record, (result,))


def save_decision(
    history: History, record: Record, details: dict[str, Any], predictions: pd.DataFrame | None = None
) -> Record:
    """Record the decision, and move the alias if the outcome requires it."""
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        if predictions is not None:
            files.append(Path(scratch) / "predictions.parquet")
            predictions.to_parquet(files[0], index=False)
        return (history.move if record.outcome == record.moved_to else history.save)(record, details, files)


def get_version(history: History, reference: str) -> "ModelVersion":
    """Return a version by its number or alias. Raises CracksError if there is none."""
    found = find_version(history.client, history.model, reference)
    if found is None:
        raise CracksError(
            f"There is no version {reference!r} of {history.model} in {tracking.shown_uri()}. `make run` registers "
            "one as challenger."
        )
    return found


def incumbents_of(version: str, production: str | None, best: str | None) -> dict[str, str]:
    """Return role -> version to compare a challenger with, each version once."""
    found = {PRODUCTION: production, "best": best if best != production else None}
    return {role: number for role, number in found.items() if number is not None and number != version}


def best_after(version: str, incumbents: dict[str, str], evidence: Evidence) -> str | None:
    """Return the best version so far if `version` is promoted, by weighted accuracy on the same images."""
    if not incumbents:
        return version
    role, best = list(incumbents.items())[-1]
    comparison = evidence.comparisons[role]
    if not isinstance(comparison, Comparison):
        return best
    ours, theirs = comparison.test.challenger, comparison.test.incumbent
    return version if ours is not None and theirs is not None and ours >= theirs else best


def outcome_of(judgement: Judgement, *, needs_approval: bool) -> Outcome:
    """Return the outcome of a judgement; a passed one can be pending until a person approves it."""
    if not judgement.passed:
        return "refused"
    return "pending" if needs_approval else "promoted"


def rollback_target(moves: list[Record], existing: Collection[str], production: str | None, to: str | None) -> str:
    """Return the version to roll back to. Raises CracksError if none is left, or `to` was never in production."""
    stack = stack_of(moves)
    before = [version for version in stack if version != production and version in existing]
    if to is None and before:
        return before[-1]
    deleted = [version for version in stack if version not in existing]
    if to in deleted or (to is None and deleted):
        raise CracksError(
            f"Version {to or deleted[-1]}, which was in production, has been deleted in {tracking.shown_uri()}. "
            "`cracks history` shows what was in production, `cracks promote VERSION` puts another version there."
        )
    if to is None:
        raise CracksError("Nothing was in production before. `cracks history` shows what was, --to names a version.")
    if to == production or to not in {move.version for move in moves}:
        raise CracksError(
            f"Version {to} is in production, or never was: there is no going back to it. See `cracks history`."
        )
    return to


def details_of(record: Record, results: tuple[RuleResult, ...], params: Params) -> dict[str, Any]:
    """Return the details stored with a decision, ready for JSON."""
    return {
        "text": record.text,
        "rules": [asdict(result) for result in results],
        "limits": params.promote.model_dump(mode="json"),
        "code": runs.code_version(),
    }


def describe(test_set: TestSet) -> dict[str, Any]:
    """Return the hash, size and data sets that identify a test set."""
    rows = test_set.rows
    return {
        "sha256": test_set.digest,
        "n_images": len(rows),
        "datasets": sorted({f"{split}:{name}" for split, name in zip(rows["split"], rows["dataset"], strict=True)}),
    }
