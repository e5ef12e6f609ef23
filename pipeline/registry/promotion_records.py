"""Decisions about production as records, and what follows of them: what was in production, what was the best."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.process_identity import ProcessIdentity, is_gone

LEASE_S = 120  # an open record that is older was left by a process that died, on this machine or another

Action = Literal["promotion", "rollback"]
Outcome = Literal["open", "promoted", "rolled back", "refused", "pending", "withdrawn"]
MOVED: tuple[Outcome, ...] = ("promoted", "rolled back")


@dataclass(frozen=True)
class Record:
    """A decision.

    Attributes:
        action: what was asked for.
        outcome: what came of it; "withdrawn" where nothing moved for a reason that is no rule's.
        version: that was to go to production.
        previous: that was in production then, None at first.
        by: who asked.
        text: the reason of a rollback, else the rules that failed, in words.
        best: the best version that was ever promoted, as of then.
        time_ms: when, milliseconds since 1970.
        process: that has opened it, a `ProcessIdentity` as JSON.
        run_id: of the MLflow run that keeps it, "" of a dry run.
    """

    action: Action
    outcome: Outcome
    version: str
    previous: str | None
    by: str
    text: str
    best: str | None = None
    time_ms: int = 0
    process: str = ""
    run_id: str = ""

    @property
    def time(self) -> str:
        """When, as ISO 8601 in UTC."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC).isoformat(timespec="seconds")

    @property
    def has_moved(self) -> bool:
        """Whether production is another version since."""
        return self.outcome in MOVED

    def as_dict(self) -> dict[str, Any]:
        """Return what a person asks of it, ready for JSON."""
        names = ("action", "outcome", "version", "previous", "by", "text", "best", "run_id")
        return {"time": self.time, **{name: getattr(self, name) for name in names}}

    @property
    def order(self) -> tuple[int, str]:
        """By this, records are in order for everybody."""
        return self.time_ms, self.run_id

    @property
    def moved_to(self) -> Outcome:
        """The outcome once the alias has moved."""
        return "promoted" if self.action == "promotion" else "rolled back"


def stack_of(moves: Iterable[Record]) -> list[str]:
    """Return the versions in production, one on top of the other; `moves` are those that moved, oldest first.

    A promotion puts a version on top. A rollback takes versions off until the one it goes back to is on top; one that
    was taken off before is put there again.
    """
    stack: list[str] = []
    for move in moves:
        if move.outcome == "rolled back" and move.version in stack:
            del stack[stack.index(move.version) + 1 :]
        else:
            stack.append(move.version)
    return stack


def rolled_back(moves: Iterable[Record]) -> frozenset[str]:
    """Return the versions that production was taken back from, but for those that came back later."""
    found: set[str] = set()
    for move in moves:
        if move.outcome == "rolled back" and move.previous is not None:
            found.add(move.previous)
        found.discard(move.version)
    return frozenset(found)


def best_of(moves: Iterable[Record]) -> str | None:
    """Return the best version that was ever promoted and not taken back; `moves` are oldest first.

    Each promotion keeps which was the better one of its version and the best so far, on the same images.
    """
    moves = list(moves)
    withdrawn = rolled_back(moves)
    return next((move.best for move in reversed(moves) if move.best and move.best not in withdrawn), None)


def may_be_running(record: Record, now_ms: int) -> bool:
    """Return whether the process that opened the record may still go on with it."""
    if now_ms - record.time_ms >= 1000 * LEASE_S:
        return False
    holder: ProcessIdentity = json.loads(record.process)
    return not is_gone(holder)


def with_final_outcome(record: Record, production: str | None, now_ms: int) -> Record:
    """Return a record; one that a crash has left open as what it came to, by the version in production now."""
    if record.outcome != "open" or may_be_running(record, now_ms):
        return record
    return replace(record, outcome=record.moved_to if production == record.version else "withdrawn")


def states_after(record: Record, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield (version, state) of the versions whose state a decision changes."""
    if outcome in MOVED:
        if record.previous is not None:
            yield record.previous, "retired" if outcome == "promoted" else "rolled back"
        yield record.version, "production"
    elif outcome in ("refused", "pending"):
        yield record.version, outcome
