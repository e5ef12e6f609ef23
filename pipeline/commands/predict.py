"""`cracks predict`: score images."""

import argparse
import logging
from pathlib import Path

from pipeline.commands import Commands

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    predict = commands.add_parser(
        "predict", help="score images", description="Score images: crack, intact, or for a person to review."
    )
    predict.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, or folders of images")
    predict.add_argument("--out", type=Path, required=True, help="CSV file to write: path, probability, label")
    predict.add_argument(
        "--model",
        help="alias, version, folder or `starter`; default: production, else challenger if it is no demo, else starter",
    )
    predict.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> None:
    from pipeline.errors import CracksError
    from pipeline.files import replacing
    from pipeline.params import load_params
    from pipeline.sources import find_images
    from pipeline.tracking import project_root

    paths = find_images(args.paths)
    name = load_params(project_root() / "params.yaml").register_as.name
    from pipeline.predict import load_model, predict  # last: it takes seconds, a mistake above none

    classifier, description = load_model(name, args.model)
    log.info("Scoring %d images with %s", len(paths), description)
    scored = predict(classifier, paths)
    with replacing(args.out) as partial:
        scored.table.to_csv(partial, index=False)
    counts = ", ".join(f"{count} {label}" for label, count in scored.table["label"].value_counts().items())
    log.info("%s: %s", args.out, counts or "no image")
    if scored.unreadable:
        reasons = "\n".join(f"  {path}: {reason}" for path, reason in scored.unreadable.items())
        raise CracksError(f"{len(scored.unreadable)} files could not be read and are not in {args.out}:\n{reasons}")
