"""`cracks check`, `registered` and `summary`, which `make run` calls before and after `dvc repro`."""

import argparse
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import Commands
from pipeline.errors import CracksError
from pipeline.project import DATASETS, project_root

if TYPE_CHECKING:
    from pipeline.params import Params

MIN_FREE_GB = 1  # for features, models and reports

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the parsers of the three commands."""
    check = commands.add_parser("check", help="check params.yaml, the sources, disk space, git and the tracking store")
    check.add_argument("--params", type=Path, default=Path("params.yaml"), help="file to check")
    check.set_defaults(run=_check)

    registered = commands.add_parser(
        "registered",
        help="exit with 0 if the tracking store has the model that the last `dvc repro` registered, else with 1",
    )
    registered.set_defaults(run=_registered)

    summary = commands.add_parser("summary", help="print the results of the last `dvc repro`")
    summary.set_defaults(run=_summary)
    for parser in (registered, summary):
        parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder of the reports")


def _check(args: argparse.Namespace) -> None:
    from pipeline.params import load_params

    params = load_params(args.params)
    missing = [str(data.source) for data in params.datasets.values() if not data.source.exists()]
    if missing:
        raise CracksError(
            f"The source {', '.join(missing)} named in {args.params} does not exist. Put the archive or folder there, "
            "or correct `source`."
        )
    _check_space(params)
    _check_dvc()
    from pipeline.registry import tracking
    from pipeline.registry.store_errors import explained

    client, experiment_id = tracking.connect()
    with explained("Start it, and run again."):
        client.set_experiment_tag(experiment_id, "cracks.checked", "writable")


def _check_space(params: "Params") -> None:
    """Raise CracksError if the disk has no room for the data sets that are still to be read, and for models."""
    root = project_root()
    new = [data.source for name, data in params.datasets.items() if not (root / DATASETS / name).exists()]
    files = [file for source in new for file in (source.rglob("*") if source.is_dir() else [source])]
    needed_gb = MIN_FREE_GB + sum(file.stat().st_size for file in files if file.is_file()) / 1e9
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb < needed_gb:
        raise CracksError(
            f"{free_gb:.1f} GB are free on the disk of {root}, about {needed_gb:.1f} GB are needed. Make room, for "
            "example by `make gc CONFIRM=yes`, or move the project."
        )


def _check_dvc() -> None:
    """Raise CracksError if DVC cannot read the stages of this project, such as without a git repository."""
    root = project_root()
    if not (root / ".dvc").is_dir():
        return
    asked = subprocess.run(["dvc", "stage", "list"], cwd=root, capture_output=True, text=True, check=False)
    if asked.returncode:
        why = asked.stderr.strip().removeprefix("ERROR: ").splitlines() or [f"exit code {asked.returncode}"]
        needs_git = " Run: git init && git add --all && git commit --message first" * ("git repository" in why[0])
        raise CracksError(f"DVC cannot run the stages: {why[0]}.{needs_git}")


def _registered(args: argparse.Namespace) -> None:
    from pipeline.registry.versions import is_registered

    if not is_registered(args.reports / "registered.json"):
        log.info("The best model is not in the current tracking store.")
        sys.exit(1)


def _summary(args: argparse.Namespace) -> None:
    from pipeline.registry.run_summary import outdated_stages, summary_lines

    print("\n".join(summary_lines(args.reports, outdated_stages())))
