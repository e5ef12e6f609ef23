"""Steps of the retraining flow as plain functions: lock, version batches with DVC and git, promote, notify."""

import fcntl
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import CracksError, RefusedError, UnavailableError
from pipeline.files import read_json, write_json
from pipeline.inbox.batches import RECORD, Taken, mark_trained
from pipeline.monitoring.notify import notify
from pipeline.params import Params
from pipeline.project import INBOX, REPORTS, TO_LABEL
from pipeline.registry import tracking
from pipeline.registry.run_summary import format_score, read_report
from pipeline.registry.versions import find_version

log = logging.getLogger(__name__)

NOTIFIED_FILE = INBOX / ".told.json"
DVC_HELP_LINE = "Having any troubles?"  # last line of DVC's error messages
# Author of commits, also on a machine without a git user name.
GIT_IDENTITY = ("-c", "user.name=cracks retraining", "-c", "user.email=retraining@localhost")


@contextmanager
def exclusive_lock(root: Path) -> Iterator[None]:
    """Hold the lock on the batches, until the process ends at the latest. Raises RefusedError if another holds it."""
    path = root / INBOX / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError("A retraining or `cracks batches` is running. Wait until it has ended.") from None
        yield


def store_batches(root: Path, params: Params) -> None:
    """Add the folder of batches to DVC, if it is tracked or a remote is set; push and commit it (`push_results`)."""
    folder = params.datasets[str(params.retrain.dataset)].source
    pointer = Path(f"{folder}.dvc")
    if (root / pointer).exists() or has_remote(root):
        _dvc(root, "add", str(folder))
        push_results(root, str(pointer))
    commit(root, [RECORD, pointer], f"Take new batches into {params.retrain.dataset}")


def push_results(root: Path, *targets: str) -> None:
    """Push `targets`, or all outputs of the stages, if a remote is set. Raises UnavailableError if that fails."""
    if not has_remote(root):
        return
    try:
        _dvc(root, "push", *targets)
    except CracksError as error:
        raise UnavailableError(f"{error} Nothing is lost: repair it, and the next run continues from here.") from None


def record_training(root: Path, version: str) -> None:
    """Record that the batches taken so far were trained on, and commit the record and dvc.lock."""
    mark_trained(root, version)
    commit(root, [RECORD, Path("dvc.lock")], f"Train version {version} on new batches")


def has_remote(root: Path) -> bool:
    """Return whether DVC has a default remote."""
    asked = subprocess.run(["dvc", "config", "core.remote"], cwd=root, capture_output=True, text=True, check=False)
    return bool(asked.stdout.strip())


def commit(root: Path, paths: Sequence[Path], message: str) -> None:
    """Commit changes of some files and nothing else, if the project is a git repository.

    If git fails, a warning is logged and retraining continues.
    """
    there = [str(path) for path in paths if (root / path).exists()]
    if not (root / ".git").exists() or not there:
        return
    commands = [
        ["git", "add", "--", *there],
        # only these, whatever the user has staged; hooks check code, and these files are not code
        ["git", *GIT_IDENTITY, "commit", "--quiet", "--no-verify", "--message", message, "--only", "--", *there],
    ]
    if shutil.which("git") is None:
        log.warning("git is not installed, so %s is not committed.", " and ".join(there))
        return
    changed = subprocess.run(["git", "status", "--porcelain", "--", *there], cwd=root, capture_output=True, check=False)
    for command in commands if changed.stdout.strip() else []:
        finished = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if finished.returncode:
            log.warning("%s: %s", " ".join(command[:2]), (finished.stderr or finished.stdout).strip())
            return


def promote(params: Params, version: str) -> str:
    """Return the decision of the gate on a version in words. Raises CracksError if the gate cannot decide."""
    from pipeline.registry import promote as gate

    try:
        decided = gate.run(params, version, dry_run=False, allow_dirty=False, by="retraining")
    except RefusedError:
        return f"version {version} is in production already"
    why = f": {decided.record.text}" if decided.record.text else ""
    return f"version {version} is {decided.outcome}{why}"


def overdue(params: Params, now: datetime) -> str | None:
    """Return the version in production, else the challenger, if it is older than `retrain.max_age_days`; else None."""
    client, _ = tracking.connect()
    version = find_version(client, params.register_as.name)
    if version is None:
        return None
    age = now - datetime.fromtimestamp(int(version.creation_timestamp) / 1000, UTC)
    return str(version.version) if age.days > params.retrain.max_age_days else None


def summary_message(root: Path, batches: Sequence[Taken], version: str, decision: str) -> list[str]:
    """Return the lines of a message: new batches, model, test scores, decision of the gate, report."""
    metrics = read_report(root / REPORTS, "scores.json")
    test = metrics["test"]
    names = ", ".join(f"{batch.file} ({batch.n_images:,} images)" for batch in batches)
    drawn = ", drawn images that say nothing about real concrete" if metrics["demo"] else ""
    return [
        f"New batches of {'+'.join(sorted({batch.dataset for batch in batches}))}: {names}",
        f"Model: version {version}, {metrics['candidate']}, trained on {'+'.join(metrics['trained_on'])}{drawn}",
        f"On test: {format_score(test, 'f1')}, ECE {test['ece']:.4f}, {test['n']:,} images",
        f"Gate: {decision}",
        f"Report: {root / 'reports' / 'report.html'}; model registry: {tracking.shown_uri()}",
    ]


def images_to_label(root: Path, params: Params) -> str:
    """Export the images most worth labelling; return a message with their location, or why that failed."""
    from pipeline.monitoring.labelling import export_from_log

    try:
        return export_from_log(params, root, root / TO_LABEL)
    except UnavailableError:
        raise
    except CracksError as error:
        return f"The images most worth labelling could not be chosen. {error}"


def notify_once(root: Path, about: str, title: str, lines: list[str], details: Callable[[], list[str]] = list) -> None:
    """Send a message unless it equals the last one about this topic; an undelivered message is sent again.

    `details` returns more lines. It is called only if the message is sent, and messages are compared without them.
    """
    notified = read_json(root / NOTIFIED_FILE, {})
    if notified.get(about) != [title, *lines] and notify(title, [*lines, *details()]):
        write_json(root / NOTIFIED_FILE, notified | {about: [title, *lines]})


def clear_notification(root: Path, about: str) -> None:
    """Forget the last message about this topic, so that the same message is sent if the problem recurs."""
    notified = read_json(root / NOTIFIED_FILE, {})
    if notified.pop(about, None) is not None:
        write_json(root / NOTIFIED_FILE, notified)


def _dvc(root: Path, *arguments: str) -> None:
    finished = subprocess.run(["dvc", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line and not line.startswith(DVC_HELP_LINE)]
        raise CracksError(f"`dvc {' '.join(arguments)}` failed: {' '.join(lines)}")
