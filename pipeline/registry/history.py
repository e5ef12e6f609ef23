"""The history of promotion decisions: one MLflow run per decision, in an experiment of its own.

MLflow keeps no history of aliases and cannot move one conditionally. So a record is written before the alias moves and
closed afterwards. An open record is also the lock: a process continues only when no other record is open, and of two
open records the later one is withdrawn. The outcome of a record left open by a crash follows from the position of the
alias; the next command closes the record accordingly.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UnavailableError
from pipeline.files import write_json
from pipeline.process_identity import this_process
from pipeline.registry import tracking
from pipeline.registry.promotion_records import (
    LEASE_S,
    Outcome,
    Record,
    may_be_running,
    states_after,
    with_final_outcome,
)
from pipeline.registry.store_errors import explained
from pipeline.registry.versions import PRODUCTION, decisions_of, lookup

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

DETAILS_FILE = "decision.json"
POLL_S = 0.1
MAX_TAG_CHARS = 5000  # MLflow takes no more; the whole text is in the file
TAGS = ("action", "outcome", "version", "previous", "by", "text", "best", "process")  # fields of a record


class History:
    """Reads and writes the decisions about a registered model, and moves its alias `production`."""

    def __init__(self, client: "MlflowClient", model: str, now_s: Callable[[], float] = time.time) -> None:
        self.client = client
        self.model = model
        self._now_s = now_s
        self._experiment_id = tracking.experiment_id(client, decisions_of(model))

    def production(self) -> str | None:
        """Return the version with the alias `production`, None if there is none."""
        found = lookup(self.client, self.model, PRODUCTION)
        return None if found is None else str(found.version)

    def versions(self) -> frozenset[str]:
        """Return the versions that exist; any may have been deleted since a decision about it."""
        return frozenset(str(found.version) for found in self.client.search_model_versions(f"name = '{self.model}'"))

    def records(self) -> list[Record]:
        """Return all decisions, newest first; one left open by a crash has its actual outcome."""
        now_ms, found = self._now_ms(), self._stored()
        production = self.production() if any(record.outcome == "open" for record in found) else None
        return [with_final_outcome(record, production, now_ms) for record in found]

    def moves(self) -> list[Record]:
        """Return the decisions that moved the alias, oldest first."""
        return [record for record in reversed(self.records()) if record.has_moved]

    def details(self, record: Record) -> dict[str, Any]:
        """Return the details stored with a decision, {} if they are lost."""
        from mlflow.artifacts import load_dict
        from mlflow.exceptions import MlflowException

        try:
            return dict(load_dict(f"runs:/{record.run_id}/{DETAILS_FILE}"))
        except (MlflowException, OSError, ValueError):
            return {}

    def close_interrupted(self) -> None:
        """Close the records that crashed processes left open."""
        production, now_ms = self.production(), self._now_ms()
        for record in self._stored():
            if record.outcome == "open" and not may_be_running(record, now_ms):
                ended = with_final_outcome(record, production, now_ms)
                log.info(
                    "A %s of version %s was interrupted; recorded as %s",
                    ended.action,
                    ended.version,
                    ended.outcome,
                )
                self._close(record, ended.outcome)

    def save(self, record: Record, details: dict[str, Any], files: Iterable[Path] = ()) -> Record:
        """Store a decision that does not move the alias."""
        kept = self._create(record)
        self._attach(kept, details, files)
        return self._close(kept, record.outcome)

    def move(self, record: Record, details: dict[str, Any], files: Iterable[Path] = ()) -> Record:
        """Open the record, move the alias to its version, and close the record.

        Raises UnavailableError if another decision is in progress, or production has changed since this one was made;
        the alias has not moved.
        """
        opened = self._create(replace(record, outcome="open"))
        try:
            self._attach(opened, details, files)
            self._wait_for_turn(opened)
            self.close_interrupted()
            if self.production() != record.previous:
                raise UnavailableError(
                    f"Production is version {self.production()} now, the decision was about version {record.previous}. "
                    "Nothing has moved; run it again."
                )
        except BaseException:
            with suppress(Exception):  # the store may be unavailable; then the next command closes the record
                self._close(opened, "withdrawn")
            raise
        self.client.set_registered_model_alias(self.model, PRODUCTION, record.version)
        return self._close(opened, opened.moved_to)

    def _wait_for_turn(self, mine: Record) -> None:
        """Wait until no other record is open; raise if an earlier one is.

        Each process checks after opening its own record, so of two at the same time at least one sees the other.
        """
        while others := [
            record
            for record in self._stored()
            if record.outcome == "open" and record.run_id != mine.run_id and may_be_running(record, self._now_ms())
        ]:
            first = min(others, key=lambda record: record.order)
            if first.order < mine.order:
                raise UnavailableError(
                    f"A {first.action} of version {first.version} by {first.by} is under way since {first.time}. "
                    "Nothing has moved; try again when it has ended."
                )
            time.sleep(POLL_S)
        if self._now_ms() - mine.time_ms > 1000 * LEASE_S / 2:
            raise UnavailableError("The registry was too slow: the turn has passed. Nothing has moved; try again.")

    def _now_ms(self) -> int:
        return int(1000 * self._now_s())

    def _stored(self) -> list[Record]:
        """Return the records as stored, newest first, including those of deleted runs."""
        import mlflow
        from mlflow.entities import ViewType

        found = mlflow.search_runs([self._experiment_id], run_view_type=ViewType.ALL, output_format="list")
        return sorted(map(_record_of, found), key=lambda record: record.order, reverse=True)

    def _create(self, record: Record) -> Record:
        """Create the run of a record in one request."""
        record = replace(record, time_ms=self._now_ms(), process=json.dumps(this_process()))
        tags = {name: (getattr(record, name) or "")[:MAX_TAG_CHARS] for name in TAGS}
        name = f"{record.action} of {record.version}"
        run = self.client.create_run(self._experiment_id, start_time=record.time_ms, tags=tags, run_name=name)
        return replace(record, run_id=str(run.info.run_id))

    def _attach(self, record: Record, details: dict[str, Any], files: Iterable[Path]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / DETAILS_FILE
            write_json(path, details)
            for file in (path, *files):
                self.client.log_artifact(record.run_id, str(file))

    def _close(self, record: Record, outcome: Outcome) -> Record:
        """Store the outcome of a decision, first as tags of the versions concerned."""
        existing = self.versions()
        for version, state in states_after(record, outcome):
            if version in existing:
                self.client.set_model_version_tag(self.model, version, "state", state)
        self.client.set_tag(record.run_id, "outcome", outcome)
        self.client.set_terminated(record.run_id, "FINISHED")
        return replace(record, outcome=outcome)


def _record_of(run: "Run") -> Record:
    tags: dict[str, Any] = {name: run.data.tags[name] for name in TAGS}
    tags |= {name: tags[name] or None for name in ("previous", "best")}
    return Record(**tags, time_ms=run.info.start_time, run_id=run.info.run_id)


@contextmanager
def opened(model: str) -> Iterator[History]:
    """Yield the history of a registered model in the current tracking store.

    Raises UnavailableError if the store does not answer, on opening or inside the block.
    """
    client, _ = tracking.connect()
    with explained("Run the command again when it is back: what was begun is then seen, and ended or taken back."):
        yield History(client, model)
