"""Accept new labelled batches from the inbox into a data set, refuse those that break the contract, and keep a record.

    data/inbox/NAME.zip       is waiting; it is complete once NAME.zip.done exists, or once it has stopped changing
    data/inbox/refused/       batches that break the contract, each with the reason and a page on the contract
    data/inbox/removed/       batches that were accepted and later found to be bad
    data/batches.json         the record: which batches were taken, when, by whom, and what became of them

The record is written before the archive is moved into the data set's folder. If the process dies in between,
`complete_interrupted` moves it: no batch is lost, none is half accepted, and none counts twice.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.data.archives import is_archive
from pipeline.data.image_names import left_out_reason
from pipeline.errors import CracksError
from pipeline.files import read_json, replacing, write_json, write_text
from pipeline.params import Params
from pipeline.project import DATASETS, INBOX

log = logging.getLogger(__name__)

RECORD = Path("data/batches.json")
COMPLETION_SUFFIX = ".done"
OWN = re.compile(r"README\.md|refused|removed|.*\.done")  # what the project itself keeps in the inbox, and markers


@dataclass(frozen=True)
class Taken:
    """A batch in the data set. Times are ISO 8601; `file` is its name in the folder of the data set."""

    name: str
    file: str
    dataset: str
    sha256: str
    n_images: int
    taken_at: str
    taken_by: str
    trained_as: str | None = None  # first model version trained on it
    removed_at: str | None = None
    removed_by: str | None = None
    removed_because: str | None = None


@dataclass(frozen=True)
class Refused:
    """A batch that was refused, and why."""

    name: str
    reason: str
    archive: Path


def read_record(root: Path) -> list[Taken]:
    """Return all batches ever taken, oldest first. Raises CracksError if the record is damaged."""
    path = root / RECORD
    try:
        return [Taken(**row) for row in read_json(path, [])]
    except (ValueError, TypeError) as error:
        raise CracksError(f"{path} cannot be read: {error}. Restore it with git.") from None


def write_record(root: Path, record: Sequence[Taken]) -> None:
    """Write the record atomically."""
    write_json(root / RECORD, [asdict(batch) for batch in record])


def waiting(root: Path, settle: timedelta, now: datetime) -> list[Path]:
    """Return the archives of the inbox with a completion marker or unchanged for the time `settle`, oldest first."""

    def is_complete(path: Path) -> bool:
        # a change in the future is from before the clock was set back; archives keep a st_mtime from anywhere
        age_s = abs(now.timestamp() - path.stat().st_ctime)
        return Path(f"{path}{COMPLETION_SUFFIX}").exists() or age_s >= settle.total_seconds()

    found = (path for path in (root / INBOX).glob("*") if _can_be_taken(path) and is_complete(path))
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def not_taken(root: Path) -> list[Path]:
    """Return what lies in the inbox and is never taken, such as a folder, a link or a file that is no archive."""
    others = (path for path in (root / INBOX).glob("*") if not _can_be_taken(path))
    return sorted(path for path in others if not left_out_reason(path.name) and not OWN.fullmatch(path.name))


def _can_be_taken(path: Path) -> bool:
    return is_archive(path.name) and not left_out_reason(path.name) and path.is_file() and not path.is_symlink()


def take_all(root: Path, params: Params, *, now: datetime, by: str) -> list[Taken | Refused]:
    """Check every waiting batch and take it into the data set of `retrain.dataset`, or refuse it.

    Raises CracksError if params name no data set, or its folder does not match the record.
    """
    if params.retrain.dataset is None:
        raise CracksError(
            "No data set takes batches. Name one under retrain.dataset in params.yaml; its source is a folder."
        )
    folder = root / params.datasets[params.retrain.dataset].source
    complete_interrupted(root, params)
    outcomes = []
    for archive in waiting(root, timedelta(minutes=params.retrain.settle_minutes), now):
        outcome = _take(root, params, folder, archive, now=now, by=by)
        log.info("%s", describe(outcome))
        outcomes.append(outcome)
    return outcomes


def _take(root: Path, params: Params, folder: Path, archive: Path, *, now: datetime, by: str) -> Taken | Refused:
    from pipeline.data.contract import broken_rules
    from pipeline.inbox.inspection import inspect

    record, sha256 = read_record(root), sha256_of(archive)
    file = next_file_name(folder, record, archive.name)
    for known in record:
        if known.sha256 == sha256 and not known.removed_at:
            reason = f"the same file was taken before, as {known.file} on {known.taken_at}"
            return _set_aside(root, archive, sha256, reason)
    name = str(params.retrain.dataset)
    scratch = root / "data/checkpoints/inbox"
    try:
        n_images, found = inspect(archive, name, params, known=root / DATASETS / name, scratch=scratch)
    except CracksError as error:
        return _set_aside(root, archive, sha256, str(error))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if broken := broken_rules(found.rules):
        return _set_aside(root, archive, sha256, f"it breaks the contract:\n{broken}", found.page)
    taken = Taken(archive.name, file, name, sha256, n_images, now.isoformat(timespec="seconds"), by)
    write_record(root, [*record, taken])
    _place(archive, folder / file)
    return taken


def remove(root: Path, params: Params, name: str, *, reason: str, now: datetime, by: str) -> Taken:
    """Remove a batch, by the name of its archive or of its file in the data set, and record who and why.

    Raises CracksError if there is no such batch, or several have that name.
    """
    record = read_record(root)
    found = [batch for batch in record if name in (batch.file, batch.name) and not batch.removed_at]
    if len(found) != 1:
        known = ", ".join(batch.file for batch in found or record if not batch.removed_at) or "none"
        raise CracksError(f"{len(found)} batches are called {name!r}. Name one by its file: {known}.")
    _move_into_place(root, params, found[0])  # else a batch whose archive is still in the inbox would be taken again
    removed = replace(found[0], removed_at=now.isoformat(timespec="seconds"), removed_by=by, removed_because=reason)
    write_record(root, [removed if batch == found[0] else batch for batch in record])
    _move_into_place(root, params, removed)
    return removed


def complete_interrupted(root: Path, params: Params) -> None:
    """Complete the moves that a process had begun when it died. Raises CracksError if a batch has no archive."""
    for batch in read_record(root):
        if batch.dataset in params.datasets:
            folder = root / params.datasets[batch.dataset].source
            for partial in (*folder.glob(".*.partial"), *(root / INBOX).glob("*/.*.partial")):
                partial.unlink()
        if not _move_into_place(root, params, batch):
            raise CracksError(
                f"{batch.file} is not in the folder of {batch.dataset}, and {root / RECORD} says that it was taken on "
                f"{batch.taken_at}. Run `dvc pull` if DVC keeps it, or `cracks batches remove {batch.file}`."
            )


def mark_trained(root: Path, version: str) -> None:
    """Record that a model version was trained on all batches taken so far."""
    record = read_record(root)
    new = untrained(record)
    write_record(root, [replace(batch, trained_as=version) if batch in new else batch for batch in record])


def untrained(record: Sequence[Taken]) -> list[Taken]:
    """Return the batches that no model was trained on yet."""
    return [batch for batch in record if not batch.trained_as and not batch.removed_at]


def next_file_name(folder: Path, record: Sequence[Taken], name: str) -> str:
    """Return a file name that sorts the next batch last: a number, then its own. Raises CracksError if it would not."""
    there = [path.name for path in folder.glob("*") if is_archive(path.name)]
    known = [*there, *(batch.file for batch in record)]
    numbers = [int(match[0]) for file in known if (match := re.match(r"\d+", file))]
    new = f"{max(numbers, default=0) + 1:04}-{name}"
    behind = sorted(file for file in there if file >= new)
    if behind:
        raise CracksError(
            f"In {folder} batches are read in the order of their names, and {', '.join(behind)} would come after the "
            f"new one, {new}. Give it a number in front, such as 0000-{behind[0]}; no image moves to another side."
        )
    return new


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(outcome: Taken | Refused) -> str:
    """Return a message that says whether a batch was taken or refused."""
    if isinstance(outcome, Refused):
        return f"{outcome.name} was set aside in {outcome.archive.parent}: {outcome.reason}"
    return f"{outcome.name} was taken as {outcome.file} of {outcome.dataset}: {outcome.n_images:,} images"


def _place(archive: Path, target: Path) -> None:
    """Move an archive, also to another disk; it is deleted at its old place only once the copy is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        try:
            os.link(archive, partial)
        except OSError:  # another disk, or one without hard links
            shutil.copy2(archive, partial)
    Path(f"{archive}{COMPLETION_SUFFIX}").unlink(missing_ok=True)
    archive.unlink()


def _move_into_place(root: Path, params: Params, batch: Taken) -> bool:
    """Move the archive of a batch to its place by the record; return False if there is no archive to move."""
    if batch.dataset not in params.datasets:
        return True  # nothing reads that folder now
    target, source = root / params.datasets[batch.dataset].source / batch.file, root / INBOX / batch.name
    if batch.removed_at:
        if target.exists():
            _place(target, root / INBOX / "removed" / batch.file)
    elif not target.exists():
        if not source.exists() or sha256_of(source) != batch.sha256:
            return False
        _place(source, target)
    return True


def _set_aside(root: Path, archive: Path, sha256: str, reason: str, page: str = "") -> Refused:
    """Move an archive to refused/ with the reason and the page; repeating this after a kill is safe."""
    target = root / INBOX / "refused" / f"{sha256[:8]}-{archive.name}"
    write_text(target.with_name(target.name + ".txt"), reason + "\n")
    if page:
        write_text(target.with_name(target.name + ".html"), page)
    _place(archive, target)
    return Refused(archive.name, reason, target)
