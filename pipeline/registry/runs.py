"""The runs of a repro in MLflow: one parent, a child for each candidate, and the child's live curves."""

import contextlib
import logging
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UnavailableError
from pipeline.files import name_by_hash
from pipeline.params import Params
from pipeline.project import REPORTS, project_root
from pipeline.registry.tracking import connect, first_line, store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

KEY_TAG = "cracks.key"
CANDIDATE_TAG = "cracks.candidate"
COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = "cracks.dirty"
CHANGED_TAG = "cracks.changed_files"
# Not code, see docs/decisions/0019-what-counts-as-code.md: a version carries its params and the hashes of its data.
NOT_CODE = ("params.yaml", "dvc.lock", "*.dvc", ".dvc", "data", str(REPORTS))
NAME_OF_MLFLOW = re.compile(r"[\w.-]{1,64}")  # it takes a few more, and 250 in all
N_SHOWN = 5  # changed files, in the tag
# sections of params.yaml that do not affect the results of a repro
SECTIONS_OUTSIDE_REPRO = {"flow", "map", "monitor", "promote", "retention", "retrain", "serve"}


def code_version() -> dict[str, str]:
    """Return tags with the git commit, whether code differs from it, and in which files.

    Code is every file that git tracks, except NOT_CODE, and each new Python file. Without git the commit is GIT_COMMIT.
    """
    root = project_root()

    def git(*arguments: str) -> str:
        finished = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return finished.stdout.strip("\0\n")

    code = ("--", ".", *(f":!{name}" for name in NOT_CODE))
    try:
        commit = git("rev-parse", "HEAD")
        changed = git("diff", "HEAD", "--name-only", "-z", "--relative", *code).split("\0")
        new = git("ls-files", "--others", "--exclude-standard", "-z", *code).split("\0")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {COMMIT_TAG: os.environ.get("GIT_COMMIT", "unknown"), DIRTY_TAG: "unknown"}
    changed = [name for name in changed if name] + [name for name in new if name.endswith(".py")]
    tags = {COMMIT_TAG: commit, DIRTY_TAG: str(bool(changed)).lower()}
    if changed:
        tags[CHANGED_TAG] = ", ".join(changed[:N_SHOWN]) + ", ..." * (len(changed) > N_SHOWN)
    return tags


def repro_key(params: Params, manifest: Path) -> str:
    """Return a hash of params and manifest, which identifies a repro."""
    return name_by_hash(manifest.read_bytes(), params.model_dump_json(exclude=SECTIONS_OUTSIDE_REPRO))


def parent_run(client: "MlflowClient", experiment_id: str, params: Params, manifest: Path) -> str:
    """Return the id of the parent run of this repro, which is created if needed."""
    key = repro_key(params, manifest)
    with store_lock():
        found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        name = "+".join(params.split.train_on) + (" (demo)" if params.is_demo else "")
        tags = {KEY_TAG: key, "cracks.demo": str(params.is_demo).lower(), **code_version()}
        return str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)


def child_runs(client: "MlflowClient", experiment_id: str, parent_id: str, candidate: str) -> list["Run"]:
    """Return the runs of a candidate under a parent run, newest first."""
    condition = f"tags.`mlflow.parentRunId` = '{parent_id}' and tags.`{CANDIDATE_TAG}` = '{candidate}'"
    return list(client.search_runs([experiment_id], condition, order_by=["attributes.start_time DESC"]))


@contextlib.contextmanager
def ending(client: "MlflowClient", run_id: str) -> Iterator[None]:
    """End the run with the block, as FINISHED or as FAILED; a store that is away by then leaves it as it is."""
    from mlflow.exceptions import MlflowException

    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        with contextlib.suppress(MlflowException):
            client.set_terminated(run_id, status)


def create_child(client: "MlflowClient", experiment_id: str, parent_id: str, params: Params, candidate: str) -> str:
    """Create a run of a candidate with its params; return its id."""
    tags = {"mlflow.parentRunId": parent_id, CANDIDATE_TAG: candidate, **code_version()}
    run_id = str(client.create_run(experiment_id, run_name=candidate, tags=tags).info.run_id)
    settings = params.candidates[candidate]
    values = {**settings.model_dump(), "backbone": params.backbones[settings.backbone].model_dump()}
    log_params(client, run_id, values)
    return run_id


def log_params(client: "MlflowClient", run_id: str, values: dict[str, Any]) -> None:
    """Log nested params of a run in as few requests as MLflow allows; a server with sign-in takes 0.1 s for each."""
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in flatten(values).items()])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries; keys are joined by dots. One with keys that MLflow does not take is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_nested = isinstance(value, dict) and all(NAME_OF_MLFLOW.fullmatch(str(inner)) for inner in value)
        flat |= flatten(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return flat


@contextlib.contextmanager
def live_run(params: Params, manifest: Path, candidate: str) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Yield a function that logs an epoch to MLflow, with system metrics beside; training never waits for the store.

    MLflow sends the epochs from a thread. What it cannot send is missing in the live curves alone.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    def warn_incomplete(error: Exception) -> None:
        log.warning("MLflow does not have all of %s yet, `register` sends the rest: %s", candidate, first_line(error))

    try:
        client, experiment_id = connect()
        parent_id = parent_run(client, experiment_id, params, manifest)
        for run in child_runs(client, experiment_id, parent_id, candidate):
            if run.info.status == "RUNNING":  # left by a process that was killed
                client.set_terminated(run.info.run_id, "KILLED")
        run_id = create_child(client, experiment_id, parent_id, params, candidate)
        mlflow.start_run(run_id, log_system_metrics=True)
    except (UnavailableError, MlflowException) as error:
        warn_incomplete(error)
        yield lambda step, values: None
        return

    def report(step: int, values: dict[str, float]) -> None:
        log_epochs(client, run_id, [{"step": step, **values}], synchronous=False)

    status = "FAILED"
    with ending(client, parent_id):  # it goes on if another candidate or `register` does
        try:
            yield report
            status = "FINISHED"
        finally:
            try:
                mlflow.flush_async_logging()
                mlflow.end_run(status)
            except MlflowException as error:
                warn_incomplete(error)


def log_epochs(client: "MlflowClient", run_id: str, rows: list[dict[str, Any]], *, synchronous: bool = True) -> None:
    """Log the finite numbers of rows of a training history, each with its `step`, in as few requests as possible."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now_ms, int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value)
    ]
    client.log_batch(run_id, metrics=metrics, synchronous=synchronous)
