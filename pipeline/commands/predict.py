"""`cracks predict`: score images."""

import argparse
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import Commands, project_params

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    predict = commands.add_parser(
        "predict",
        help="score images",
        description="Score images and label them crack, intact or review (a person should look).",
    )
    predict.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, or folders of images")
    predict.add_argument("--out", type=Path, required=True, help="CSV file to write: path, probability, label, error")
    predict.add_argument(
        "--model",
        help="alias, version, folder or `starter`; default: production, else challenger if it is no demo, else starter",
    )
    predict.add_argument("--log", action="store_true", help="add the predictions to the prediction log, for monitoring")
    predict.add_argument(
        "--photo-pattern", help="with --log: regular expression on the path of a tile; its first group names the photo"
    )
    predict.add_argument("--dask", metavar="ADDRESS", help="Dask scheduler of a cluster to run on")
    predict.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> None:
    from pipeline.data.path_metadata import check_photo_pattern
    from pipeline.data.sources import find_images
    from pipeline.errors import CracksError
    from pipeline.monitoring.prediction_log import PredictionLog
    from pipeline.project import LOG_FOLDER, project_root

    paths = find_images(args.paths)
    check_photo_pattern(args.photo_pattern)
    params = project_params()
    from pipeline.crack_maps.batch_prediction import log_rows, run  # last, because it takes seconds
    from pipeline.registry.model_lookup import found_model

    with found_model(params.register_as.name, args.model) as found:
        log.info("Scoring %d images with %s", len(paths), found.description)
        prediction_log = PredictionLog(project_root() / LOG_FOLDER, params.monitor.log_max_mb)

        def log_predictions(table: "pd.DataFrame") -> None:
            prediction_log.append(log_rows(table, found.version, args.photo_pattern, datetime.now(UTC)))

        counts = run(found, paths, args.out, args.dask, log_predictions if args.log else None)
    n_unreadable = counts.pop("", 0)
    log.info("%s: %s", args.out, ", ".join(f"{count} {label}" for label, count in counts.items()) or "no image")
    if n_unreadable == len(paths):
        raise CracksError(f"No image could be read. The reasons are in {args.out}.")
    if n_unreadable:
        log.warning("%d files could not be read; see the column `error` of %s", n_unreadable, args.out)
