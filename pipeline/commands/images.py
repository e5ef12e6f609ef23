"""`cracks predict` and `map`: score images, and show where the cracks are in photos."""

import argparse
import logging
import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import Commands, project_params
from pipeline.errors import CracksError
from pipeline.project import LOG_FOLDER, project_root

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.params import Params

log = logging.getLogger(__name__)

OUTSIDE_A_PROJECT = {"tile_px": 256, "overlap": 0, "model_mm_per_px": None}  # section `map` of params.yaml as shipped
MAX_SHOWN = 20  # photos that could not be mapped, listed with the reason


def add(commands: Commands) -> None:
    """Add the parsers of both commands."""
    predict = commands.add_parser(
        "predict",
        help="score images",
        description="Score images and label them crack, intact or review (a person should look).",
    )
    predict.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, or folders of images")
    columns = "path, probability, label, reason, error; with --prevalence also what the model assumes"
    predict.add_argument("--out", type=Path, required=True, help=f"CSV file to write: {columns}")
    predict.add_argument(
        "--model",
        help="alias, version, folder or `starter`; default: production, else challenger, else starter, and no demo",
    )
    predict.add_argument("--log", action="store_true", help="add the predictions to the prediction log, for monitoring")
    predict.add_argument(
        "--photo-pattern", help="with --log: regular expression on the path of a tile; its first group names the photo"
    )
    predict.set_defaults(run=_predict)

    crack_map = commands.add_parser(
        "map",
        help="show where cracks are in photos",
        description="Write an overlay, a table of tiles and a report for each photo, and a page of all photos.",
    )
    crack_map.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="photos, or folders of photos")
    crack_map.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    crack_map.add_argument("--model", help="as for `cracks predict`")
    crack_map.add_argument("--mm-per-px", type=float, help="ground resolution of the photos, if known")
    crack_map.add_argument("--strip-location", action="store_true", help="omit time and place of the photos")
    crack_map.set_defaults(run=_map)

    for parser in (predict, crack_map):
        parser.add_argument(
            "--prevalence",
            type=_prevalence,
            metavar="SHARE",
            help="share of cracked images or tiles, such as 0.1, that you expect; probabilities are corrected for it",
        )
        parser.add_argument("--dask", metavar="ADDRESS", help="Dask scheduler of a cluster to run on")


def _prevalence(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is no share of cracks: give a number above 0 and below 1, such as 0.1")


def _predict(args: argparse.Namespace) -> None:
    import pandas as pd

    from pipeline.data.image_names import reasons_with_counts
    from pipeline.data.path_metadata import check_photo_pattern
    from pipeline.data.sources import find_images
    from pipeline.monitoring.prediction_log import PredictionLog

    paths = find_images(args.paths)
    check_photo_pattern(args.photo_pattern)
    params = project_params() if args.log else _params_if_needed(args.model)
    from pipeline.crack_maps.batch_prediction import log_rows, run  # last, because it takes seconds
    from pipeline.inference.out_of_distribution import load_detector, missed_cracks
    from pipeline.registry.model_lookup import found_model

    with found_model(params.register_as.name if params else "", args.model) as found:
        log.info("Scoring %d images with %s", len(paths), found.description)

        def log_predictions(table: "pd.DataFrame") -> None:
            rows = log_rows(table, found.version, args.photo_pattern, datetime.now(UTC))
            PredictionLog(project_root() / LOG_FOLDER, project_params().monitor.log_max_mb).append(rows)

        on_scored = log_predictions if args.log else None
        counts = run(found, paths, args.out, args.dask, on_scored, prevalence=args.prevalence)
        log.info(missed_cracks(load_detector(found.folder))[0])
    n_unreadable = counts.pop("", 0)
    log.info("%s: %s", args.out, ", ".join(f"{count} {label}" for label, count in counts.items()) or "no image")
    if not n_unreadable:
        return
    errors = pd.read_csv(args.out, usecols=["error"], keep_default_na=False)["error"]
    reasons = reasons_with_counts(errors[errors != ""])
    if n_unreadable == len(paths):
        raise CracksError(f"No image could be read; {args.out} has the reason of each:{reasons}")
    log.warning("%d files could not be read; see the column `error` of %s:%s", n_unreadable, args.out, reasons)


def _map(args: argparse.Namespace) -> None:
    from pipeline.data.image_names import reasons_with_counts
    from pipeline.data.sources import find_images

    if args.mm_per_px is not None and not 0 < args.mm_per_px < math.inf:
        raise CracksError(f"--mm-per-px is {args.mm_per_px:g}, it must be more than 0 and finite.")
    paths = find_images(args.paths)
    params = _params_if_needed(args.model)
    from pipeline.crack_maps.map_files import run  # last, because it takes seconds
    from pipeline.inference.out_of_distribution import load_detector, missed_cracks
    from pipeline.params import Map
    from pipeline.registry.model_lookup import found_model

    cut = params.map if params else Map(**OUTSIDE_A_PROJECT)
    with found_model(params.register_as.name if params else "", args.model) as found:
        log.info("Mapping %d photos with %s", len(paths), found.description)
        settings = {name: getattr(args, name) for name in ("mm_per_px", "strip_location", "prevalence")}
        summary = run(found, paths, args.out, cut, args.dask, **settings)
        log.info(" ".join([*missed_cracks(load_detector(found.folder)), "An unmarked area may still have cracks."]))
    failed = summary[summary["error"] != ""]
    for row in failed.head(MAX_SHOWN).itertuples():
        log.warning("not mapped: %s: %s", row.photo, row.error)
    if len(failed) > MAX_SHOWN:
        log.warning("and %d more; see the column `error` of %s", len(failed) - MAX_SHOWN, args.out / "summary.csv")
    if len(failed) == len(summary):
        raise CracksError(f"No photo could be mapped:{reasons_with_counts(failed['error'])}")
    log.info("%s: %d photos mapped, %d failed", args.out / "index.html", len(summary) - len(failed), len(failed))


def _params_if_needed(model: str | None) -> "Params | None":
    """Return params.yaml; None where there is none, and the model is the starter or in a folder, which need none."""
    is_registered = model is None or not (model == "starter" or Path(model).is_dir())
    return project_params() if is_registered or (project_root() / "params.yaml").exists() else None
