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
    predict.add_argument("--log", action="store_true", help="note what was seen in the prediction log, for monitoring")
    predict.add_argument(
        "--photo-pattern", help="with --log: regular expression whose first group names a tile's photo"
    )
    predict.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> None:
    from datetime import UTC, datetime

    from pipeline.errors import CracksError
    from pipeline.files import replacing
    from pipeline.ingest import check_photo_pattern
    from pipeline.params import Dataset, load_params
    from pipeline.prediction_log import LOG_FOLDER, PredictionLog
    from pipeline.sources import find_images
    from pipeline.tracking import project_root

    paths = find_images(args.paths)
    check_photo_pattern(Dataset(source=paths[0], photo_pattern=args.photo_pattern))
    params = load_params(project_root() / "params.yaml")
    from pipeline.predict import load_model, log_rows, predict  # last: it takes seconds, a mistake above none

    classifier, description = load_model(params.register_as.name, args.model)
    log.info("Scoring %d images with %s", len(paths), description)
    scored = predict(classifier, paths)
    with replacing(args.out) as partial:
        scored.table.to_csv(partial, index=False)
    if args.log:
        rows = log_rows(scored, classifier.version, args.photo_pattern, datetime.now(UTC))
        PredictionLog(project_root() / LOG_FOLDER, params.monitor.log_max_mb).append(rows)
    counts = ", ".join(f"{count} {label}" for label, count in scored.table["label"].value_counts().items())
    log.info("%s: %s", args.out, counts or "no image")
    if scored.unreadable:
        reasons = "\n".join(f"  {path}: {reason}" for path, reason in scored.unreadable.items())
        raise CracksError(f"{len(scored.unreadable)} files could not be read and are not in {args.out}:\n{reasons}")
