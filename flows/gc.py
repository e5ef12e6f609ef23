"""Delete what is older than `retention` in params.yaml: `python -m flows.gc [--delete]`; by default it is only listed.

This concerns old data in DVC's cache, the files of models that the gate refused, old runs in Prefect, and what killed
processes left half written.
"""

import argparse
import logging
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.settings import get_current_settings

from flows.services import OURS, reaching_prefect
from pipeline.errors import CracksError
from pipeline.params import load_params
from pipeline.project import project_root
from pipeline.registry.retention import clean_registry
from pipeline.stage import run_main

log = logging.getLogger(__name__)

WRITTEN = ("data", "models", "reports")  # folders that stages and commands write to
PARTIAL_AGE = timedelta(days=1)  # of what no process still writes


def clean_cache(before: datetime, *, dry_run: bool) -> None:
    """Delete from DVC's cache what is not used by the workspace, a branch, a tag or a commit since then.

    Raises CracksError if DVC failed; its own message is above.
    """
    command = ["dvc", "--wait-for-lock", "gc", "--workspace", "--force"]
    if (project_root() / ".git").exists():
        command += ["--all-branches", "--all-tags", "--date", f"{before:%Y-%m-%d}"]
    finished = subprocess.run([*command, *(["--dry"] if dry_run else [])], cwd=project_root(), check=False)
    if finished.returncode != 0:
        raise CracksError(f"`{' '.join(command)}` failed, see above. Nothing else was deleted.")


def clean_partial(before: datetime, *, dry_run: bool) -> list[Path]:
    """Delete what killed processes left half written before a time, unless it is a dry run; return all paths."""
    everything = (path for top in WRITTEN for path in (project_root() / top).rglob(".*.partial"))
    found = sorted(path for path in everything if path.lstat().st_mtime < before.timestamp())
    for path in () if dry_run else reversed(found):  # what is in a folder, before the folder
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def clean_runs(client: SyncPrefectClient, before: datetime, *, dry_run: bool) -> int:
    """Delete the runs of these flows that ended before a time, unless it is a dry run; return their number."""
    state = {"type": {"any_": list(TERMINAL_STATES)}}
    ended = FlowRunFilter.model_validate({**OURS, "end_time": {"before_": before}, "state": state})
    n_found = 0
    while page := client.read_flow_runs(flow_run_filter=ended, offset=n_found if dry_run else 0):
        n_found += len(page)
        for run in () if dry_run else page:
            client.delete_flow_run(run.id)
    return n_found


def main() -> None:
    """List or delete what is older than its retention."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delete", action="store_true", help="delete; by default only list")
    dry_run = not parser.parse_args().delete
    params, now = load_params(project_root() / "params.yaml"), datetime.now(UTC)
    keep = params.retention
    with reaching_prefect(get_current_settings().api.url), get_client(sync_client=True) as client:
        log.info("DVC's cache, of commits older than %d days:", keep.dvc_cache_days)
        clean_cache(now - timedelta(days=keep.dvc_cache_days), dry_run=dry_run)
        log.info("Models that were refused more than %d days ago:", keep.refused_models_days)
        clean_registry(params.register_as.name, now - timedelta(days=keep.refused_models_days), dry_run=dry_run)
        log.info("Runs in Prefect that ended more than %d days ago:", keep.flow_runs_days)
        log.info("%d runs", clean_runs(client, now - timedelta(days=keep.flow_runs_days), dry_run=dry_run))
    log.info("Files and folders that killed processes left half written:")
    for path in clean_partial(now - PARTIAL_AGE, dry_run=dry_run):
        log.info("%s", path)
    log.info("Nothing was deleted. `make gc CONFIRM=yes` deletes it." if dry_run else "Deleted.")


if __name__ == "__main__":
    run_main(main)
