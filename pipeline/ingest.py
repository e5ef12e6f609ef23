"""Read a data set once: every image is decoded, described in the inventory and packed; the rest goes to quarantine.

Writes into --out: images.bin (the original bytes end to end), inventory.parquet (a row an image, in the same order)
and quarantine.csv (path, reason).
"""

import hashlib
import itertools
import logging
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from tqdm import tqdm

from pipeline.demo import draw, read_recipe
from pipeline.errors import CracksError
from pipeline.files import replacing_folder
from pipeline.images import (
    IMAGES_FILE,
    INVENTORY_FILE,
    QUARANTINE_FILE,
    UnreadableImageError,
    open_image,
    thumbnail,
    to_pixels,
)
from pipeline.params import Dataset, Label, load_params
from pipeline.sources import read_files
from pipeline.stage import run_main, stage_parser

log = logging.getLogger(__name__)

# The folder names of the two published data sets of this field, and our own.
DEFAULT_LABELS: dict[str, Label] = {
    "Positive": "crack",
    "Negative": "intact",
    "Cracked": "crack",
    "Non-cracked": "intact",
    "crack": "crack",
    "intact": "intact",
}
CHUNK_FILES = 512  # in memory at a time: a few MB of tiles, under 3 GB of the largest photos


def label_of(path: str, labels: dict[str, Label]) -> Label | None:
    """Return the label of the nearest folder above `path` that has one, None where no folder has."""
    return next((labels[part] for part in reversed(PurePosixPath(path).parent.parts) if part in labels), None)


def photo_of(path: str, pattern: str | None) -> str | None:
    """Return the photo that the tile at `path` was cut from, None where the pattern does not match or is not given."""
    match = re.search(pattern, path) if pattern else None
    return match[1] if match else None


def describe(file: tuple[str, bytes]) -> dict[str, Any]:
    """Return the measured part of an inventory row of (path, content), or {path, reason} for quarantine."""
    path, content = file
    try:
        image = open_image(content)
        pixels = to_pixels(image)
    except UnreadableImageError as error:
        return {"path": path, "reason": str(error)}
    grey = thumbnail(pixels)
    return {
        "path": path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "mode": image.mode,
        "format": image.format,
        "n_bytes": len(content),
        "brightness": float(grey.mean()),  # grey levels, 0..255
        "contrast": float(grey.std()),  # grey levels
        "thumbnail": grey.tobytes(),  # uint8, 24 x 24, row by row
    }


def files_of(dataset: Dataset) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of every file of the data set, drawn or read."""
    return draw(read_recipe(dataset.source)) if dataset.is_drawn else read_files(dataset.source)


def check_labels(unlabelled: Iterable[str], dataset: Dataset) -> None:
    """Raise CracksError if any path has no label: which folders, which labels are known, what to do."""
    folders = sorted({str(PurePosixPath(path).parent) for path in unlabelled})
    if folders:
        shown = ", ".join(repr(folder) for folder in folders[:5]) + (" ..." if len(folders) > 5 else "")
        raise CracksError(
            f"{dataset.source} has images in folders without a known label: {shown}. "
            f"Known are {', '.join(dataset.labels or DEFAULT_LABELS)}. "
            "Rename the folders, or name them under `labels` of this data set."
        )


def check_photo_pattern(dataset: Dataset) -> None:
    """Raise CracksError unless `photo_pattern` is a regular expression with a group."""
    try:
        groups = re.compile(dataset.photo_pattern or "()").groups
    except re.error as error:
        raise CracksError(f"photo_pattern {dataset.photo_pattern!r} is no regular expression: {error}.") from None
    if not groups:
        raise CracksError(
            f"photo_pattern {dataset.photo_pattern!r} has no group. Put the part that names the photo into parentheses."
        )


def _chunks(files: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    while chunk := list(itertools.islice(files, CHUNK_FILES)):
        yield chunk


def run(dataset: Dataset, out: Path) -> None:
    """Read the source of `dataset` into the folder `out`; nothing is left there on failure."""
    check_photo_pattern(dataset)
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    with (
        replacing_folder(out) as folder,
        (folder / IMAGES_FILE).open("wb") as packed,
        multiprocessing.get_context("forkserver").Pool(os.cpu_count()) as pool,
        tqdm(desc=f"reading {dataset.source}", unit=" files", disable=None) as progress,
    ):
        for chunk in _chunks(files_of(dataset)):
            for (path, content), row in zip(chunk, pool.map(describe, chunk, chunksize=32), strict=True):
                if "reason" in row:
                    quarantine.append(row)
                    continue
                row |= {
                    "label": label_of(path, dataset.labels or DEFAULT_LABELS),
                    "photo": photo_of(path, dataset.photo_pattern),
                }
                rows.append(row | {"offset": packed.tell()})
                packed.write(content)
            progress.update(len(chunk))
        check_labels((row["path"] for row in rows if row["label"] is None), dataset)
        if not rows:
            raise CracksError(
                f"{dataset.source} holds no image that can be read ({len(quarantine)} other files). "
                "Put labelled images into it, in folders such as Positive/ and Negative/."
            )
        pd.DataFrame(rows).to_parquet(folder / INVENTORY_FILE, index=False)
        pd.DataFrame(quarantine, columns=["path", "reason"]).to_csv(folder / QUARANTINE_FILE, index=False)
    log.info("%s: %d images, %d files in quarantine", dataset.source, len(rows), len(quarantine))


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="its name in params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    run(load_params(args.params).datasets[args.dataset], args.out)


if __name__ == "__main__":
    run_main(main)
