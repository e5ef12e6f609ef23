"""`cracks map`: show where the cracks are in photos."""

import argparse
import logging
from pathlib import Path

from pipeline.commands import Commands, project_params

log = logging.getLogger(__name__)

MAX_SHOWN = 20  # photos that could not be mapped, listed with the reason


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "map",
        help="show where cracks are in photos",
        description="Write an overlay, a table of tiles and a report for each photo, and a page of all photos.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="photos, or folders of photos")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--model", help="as for `cracks predict`")
    parser.add_argument("--mm-per-px", type=float, help="ground resolution of the photos, if known")
    parser.add_argument("--strip-location", action="store_true", help="omit time and place of the photos")
    parser.add_argument("--dask", metavar="ADDRESS", help="Dask scheduler of a cluster to run on")
    parser.set_defaults(run=_map)


def _map(args: argparse.Namespace) -> None:
    from pipeline.data.sources import find_images
    from pipeline.errors import CracksError

    if args.mm_per_px is not None and args.mm_per_px <= 0:
        raise CracksError(f"--mm-per-px is {args.mm_per_px:g}, it must be more than 0.")
    out = args.out.resolve()
    paths = [path for path in find_images(args.paths) if not path.resolve().is_relative_to(out)]  # do not map maps
    params = project_params()
    from pipeline.crack_maps.map_files import run  # last, because it takes seconds
    from pipeline.registry.model_lookup import found_model

    with found_model(params.register_as.name, args.model) as found:
        log.info("Mapping %d photos with %s", len(paths), found.description)
        summary = run(
            found,
            paths,
            args.out,
            params.map,
            mm_per_px=args.mm_per_px,
            strip_location=args.strip_location,
            dask_address=args.dask,
        )
    failed = summary[summary["error"] != ""]
    for row in failed.head(MAX_SHOWN).itertuples():
        log.warning("not mapped: %s: %s", row.photo, row.error)
    if len(failed) > MAX_SHOWN:
        log.warning("and %d more; see the column `error` of %s", len(failed) - MAX_SHOWN, args.out / "summary.csv")
    if len(failed) == len(summary):
        raise CracksError("No photo could be mapped. Give files that a picture viewer can open.")
    log.info("%s: %d photos mapped, %d failed", args.out / "index.html", len(summary) - len(failed), len(failed))
