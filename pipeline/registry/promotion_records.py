"""Records of promotion decisions, and what follows from them: former production versions and the best version."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.process_identity import ProcessIdentity, is_gone
from pipeline.registry.versions import MOVED

LEASE_S = 120  # an older open record was left by a process that died, on this machine or another

Action = Literal["promotion", "rollback"]
Outcome = Literal["open", "promoted", "rolled back", "refused", "pending", "withdrawn"]


@dataclass(frozen=True)
class Record:
    """A promotion decision."""

    action: Action  # what was requested
    outcome: Outcome  # the result; "withdrawn" if nothing moved for a reason other than a rule
    version: str  # the version to put into production
    previous: str | None  # the version in production at that time, None if there was none
    by: str  # user who requested it
    text: str  # the reason for a rollback, otherwise the rules that failed
    best: str | None = None  # the best version promoted up to then
    time_ms: int = 0  # time in milliseconds since 1970
    process: str = ""  # the process that opened it, a `ProcessIdentity` as JSON
    run_id: str = ""  # id of the MLflow run that stores it, "" for a dry run

    @property
    def time(self) -> str:
        """The time as ISO 8601 in UTC."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC).isoformat(timespec="seconds")

    @property
    def has_moved(self) -> bool:
        """Whether the decision changed the version in production."""
        return self.outcome in MOVED

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that users see, ready for JSON."""
        names = ("action", "outcome", "version", "previous", "by", "text", "best", "run_id")
        return {"time": self.time, **{name: getattr(self, name) for name in names}}

    @property
    def order(self) -> tuple[int, str]:
        """Sort key that gives every process the same order of records."""
        return self.time_ms, self.run_id

    @property
    def moved_to(self) -> Outcome:
        """The outcome of this action if the alias has moved."""
        return "promoted" if self.action == "promotion" else "rolled back"


def stack_of(moves: Iterable[Record]) -> list[str]:
    """Return the stack of production versions, the current one last; `moves` are the records that moved, oldest first.

    A promotion pushes a version. A rollback pops versions down to its target; a target that is no longer on the stack
    is pushed again.
    """
    stack: list[str] = []
    for move in moves:
        if move.outcome == "rolled back" and move.version in stack:
            del stack[stack.index(move.version) + 1 :]
        else:
            stack.append(move.version)
    return stack


def rolled_back(moves: Iterable[Record]) -> frozenset[str]:
    """Return the versions that were rolled back and have not been in production since."""
    found: set[str] = set()
    for move in moves:
        if move.outcome == "rolled back" and move.previous is not None:
            found.add(move.previous)
        found.discard(move.version)
    return frozenset(found)


def best_of(moves: Iterable[Record], existing: Collection[str]) -> str | None:
    """Return the best existing version that was promoted and not rolled back; `moves` are oldest first.

    Each promotion records the better of its version and the best so far, scored on the same images.
    """
    moves = list(moves)
    withdrawn = rolled_back(moves)
    best = (move.best for move in reversed(moves) if move.best in existing and move.best not in withdrawn)
    return next(best, None)


def may_be_running(record: Record, now_ms: int) -> bool:
    """Return whether the process that opened the record may still be running."""
    if now_ms - record.time_ms >= 1000 * LEASE_S:
        return False
    holder: ProcessIdentity = json.loads(record.process)
    return not is_gone(holder)


def with_final_outcome(record: Record, production: str | None, now_ms: int) -> Record:
    """Return the record; if a crash left it open, with the outcome that the version in production implies."""
    if record.outcome != "open" or may_be_running(record, now_ms):
        return record
    return replace(record, outcome=record.moved_to if production == record.version else "withdrawn")


def states_after(record: Record, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield (version, state) for each version whose state a decision changes."""
    if outcome in MOVED:
        if record.previous is not None:
            yield record.previous, "retired" if outcome == "promoted" else "rolled back"
        yield record.version, "production"
    elif outcome in ("refused", "pending"):
        yield record.version, outcome
