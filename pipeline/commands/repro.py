"""`cracks check`, `registered` and `summary`, which `make run` calls before and after `dvc repro`."""

import argparse
import logging
import sys
from pathlib import Path

from pipeline.commands import Commands
from pipeline.errors import CracksError

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the parsers of the three commands."""
    check = commands.add_parser("check", help="check params.yaml and that every source exists")
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

    missing = [str(data.source) for data in load_params(args.params).datasets.values() if not data.source.exists()]
    if missing:
        raise CracksError(
            f"The source {', '.join(missing)} named in {args.params} does not exist. Put the archive or folder there, "
            "or correct `source`."
        )


def _registered(args: argparse.Namespace) -> None:
    from pipeline.registry.versions import is_registered

    if not is_registered(args.reports / "registered.json"):
        log.info("The best model is not in the current tracking store.")
        sys.exit(1)


def _summary(args: argparse.Namespace) -> None:
    from pipeline.registry.run_summary import summary_lines

    print("\n".join(summary_lines(args.reports)))
