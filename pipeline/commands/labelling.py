"""`cracks worth-labelling`: the images of the prediction log that are most worth a person's label."""

import argparse
import logging
from pathlib import Path

from pipeline.commands import Commands

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    worth = commands.add_parser(
        "worth-labelling",
        help="export the images most worth labelling",
        description="Export logged images that the model was unsure of, or that are far from what it has learned.",
    )
    worth.add_argument("--out", type=Path, required=True, help="folder to write: list.csv and copies of the images")
    worth.set_defaults(run=_worth_labelling)


def _worth_labelling(args: argparse.Namespace) -> None:
    from pipeline.errors import CracksError
    from pipeline.labelling import export, worth_labelling
    from pipeline.params import load_params
    from pipeline.prediction_log import LOG_FOLDER, PredictionLog
    from pipeline.tracking import project_root
    from pipeline.watched import watched_model

    if args.out.exists():
        raise CracksError(f"{args.out} exists already. Give a folder that does not, so that nothing is overwritten.")
    root = project_root()
    params = load_params(root / "params.yaml")
    watched = watched_model(params.register_as.name)
    rows = PredictionLog(root / LOG_FOLDER).read(model_version=watched.version)
    if rows.empty:
        raise CracksError(
            f"The prediction log {root / LOG_FOLDER} has nothing of version {watched.version}. Score images first: "
            "`cracks predict PATH --log`."
        )
    chosen = worth_labelling(rows, watched.reference, params.monitor.worth_labelling, watched.threshold)
    n_copied = export(chosen, args.out)
    log.info("%s: %d images of %d, %d with a copy beside the list", args.out, len(chosen), len(rows), n_copied)
