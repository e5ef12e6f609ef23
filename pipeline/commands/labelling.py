"""`cracks worth-labelling`: export the logged images that are most worth labelling."""

import argparse
import logging
from pathlib import Path

from pipeline.commands import Commands, project_params

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    worth = commands.add_parser(
        "worth-labelling",
        help="export the images most worth labelling",
        description="Export logged images that the model was unsure of, or that are far from its training images.",
    )
    worth.add_argument("--out", type=Path, required=True, help="folder to write: list.csv and copies of the images")
    worth.set_defaults(run=_worth_labelling)


def _worth_labelling(args: argparse.Namespace) -> None:
    from pipeline.errors import CracksError
    from pipeline.monitoring.labelling import export_from_log
    from pipeline.project import project_root

    if args.out.exists():
        raise CracksError(f"{args.out} exists already. Give a new folder, so that nothing is overwritten.")
    log.info("%s", export_from_log(project_params(), project_root(), args.out))
