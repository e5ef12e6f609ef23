"""Measures how well and how fast near-duplicates are found, with copies made of real and drawn images.

    python -m benchmarks.copies --chosen-on metu.zip sdnet.zip --measured-on sdnet-more.zip

Prints tables in Markdown. The limits of `pipeline.data.near_duplicates` were chosen on the first archives; the others,
and drawn images, only measure. Tiles of SDNET2018 show different places and drawn images are all different, so that a
pair of them is no copy; nor is a pair of different labels of METU, or of two archives. Each image is altered in
one of the ways, in turn, and searched for among all: the precision is the share of pairs that are of one original.
"""

import argparse
import hashlib
import itertools
import multiprocessing
import multiprocessing.pool
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.alterations import ALTERATIONS, LIMITS, fingerprint_only, measure_of, read_images, thumbnail_of
from benchmarks.growth import print_growth
from pipeline.data.demo import draw, read_recipe
from pipeline.data.fingerprints import Fingerprints, compare, fingerprint
from pipeline.data.images import decode, thumbnail
from pipeline.data.near_duplicates import (
    DOUBTFUL_FROM,
    MIN_AGREEMENT,
    TILE_WEIGHT,
    Measure,
    Positions,
    connected_groups,
    copy_pairs,
)
from pipeline.data.pixel_agreement import Greys
from pipeline.project import project_root

CANDIDATES_FROM = 0.4  # correlation of pairs that are compared on pixels here, far below LIMITS
N_DRAWN = 1500  # of each label


@dataclass(frozen=True)
class ImageSet:
    """Images with their thumbnails and fingerprints."""

    contents: list[bytes]
    originals: list[str]  # what two images must have in common to be copies: a name, or only a label
    are_tiles: bool  # of known photos
    greys: Greys
    fingerprints: Fingerprints

    def every(self, n: int) -> "ImageSet":
        """Return every n-th image."""
        some = slice(None, None, n)
        return ImageSet(
            self.contents[some], self.originals[some], self.are_tiles, self.greys[some], self.fingerprints[some]
        )

    @property
    def sha256(self) -> list[str]:
        """Of the bytes of each image."""
        return [hashlib.sha256(content).hexdigest() for content in self.contents]


def image_set(path: Path, pool: multiprocessing.pool.Pool) -> ImageSet:
    """Return the JPEG files of an archive, or drawn images if `path` is a recipe."""
    if path.suffix == ".yaml":
        recipe = read_recipe(path).model_copy(update={"images_per_class": N_DRAWN, "mirrored_per_class": 0})
        files = {
            name: content for name, content in draw(recipe) if int(Path(name).stem) <= N_DRAWN
        }  # the last is broken
    else:
        files = read_images(path)
    has_copies = any(name.startswith("Positive/") for name in files)  # METU
    greys = np.stack(pool.map(thumbnail_of, files.values(), chunksize=64))
    return ImageSet(
        contents=list(files.values()),
        originals=[name.split("/")[0] if has_copies else name for name in files],
        are_tiles="-" in Path(next(iter(files))).stem,
        greys=greys,
        fingerprints=np.stack([fingerprint(grey) for grey in greys]),
    )


def weighted(measure: Measure) -> Measure:
    """Return the measure for tiles of known photos."""
    return lambda pairs, symmetries: np.float32(TILE_WEIGHT) * measure(pairs, symmetries)


def altered_thumbnail(task: tuple[int, bytes]) -> Greys:
    """Return the thumbnail of a copy of an image, altered in the way of that number, uint8, shape (64, 64)."""
    number, content = task
    return thumbnail_of(list(ALTERATIONS.values())[number](content))


def print_recall(name: str, images: ImageSet, pool: multiprocessing.pool.Pool) -> None:
    """Print the recall of each alteration, and the precision: by fingerprints alone, and by pixels."""
    n = len(images.greys)
    kinds = np.arange(n) % len(ALTERATIONS)
    tasks = zip(kinds.tolist(), images.contents, strict=True)
    greys = np.concatenate([images.greys, pool.map(altered_thumbnail, tasks, chunksize=16)])
    fingerprints = np.stack([fingerprint(grey) for grey in greys])
    sha256 = images.sha256 + [f"copy {row}" for row in range(n)]
    originals = np.array(images.originals * 2)
    by_pixels = measure_of(greys)
    measures = {"fingerprints": fingerprint_only, "pixels": by_pixels, "pixels, other photo": weighted(by_pixels)}
    recalls = []
    for method, measure in measures.items():
        pairs, doubtful = copy_pairs(fingerprints, sha256, LIMITS, measure)
        groups = connected_groups(2 * n, pairs[["first", "second"]].to_numpy())
        is_found = groups[n:] == groups[:n]
        recalls.append(np.bincount(kinds, is_found) / np.bincount(kinds))
        compared = pairs[pairs["kind"] != "identical"]
        is_right = originals[compared["first"]] == originals[compared["second"]]
        print(
            f"- {name}, {n:,} images and {n:,} copies, by {method}: recall {is_found.mean():.5f}, precision "
            f"{is_right.mean():.5f} of {len(compared):,} pairs, {len(doubtful)} doubtful pairs",
            flush=True,
        )
    print(f"\n| {name} | {' | '.join(measures)} |\n| --- |{' ---: |' * len(measures)}")
    for kind, shares in zip(ALTERATIONS, np.transpose(recalls), strict=True):
        print(f"| {kind} | {' | '.join(f'{share:.4f}' for share in shares)} |", flush=True)
    print(flush=True)


def best_correlations(first: Fingerprints, second: Fingerprints) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the correlations of 500 of `first` with all of `second`, best of eight; shape (500, n_second)."""
    signs = (-1.0) ** np.arange(32).astype(np.float32)
    target = second.reshape(len(second), -1).astype(np.float32)
    target /= np.maximum(np.linalg.norm(target, axis=1, keepdims=True), 1)
    for start in range(0, len(first), 500):
        block = first[start : start + 500].astype(np.float32)
        block /= np.maximum(np.linalg.norm(block, axis=(1, 2), keepdims=True), 1)
        best = np.full((len(block), len(target)), -1, np.float32)
        flips = np.stack([np.ones((32, 32), np.float32), np.tile(signs, (32, 1))])  # as is, left-right
        for turned, flip in itertools.product((block, block.transpose(0, 2, 1)), (*flips, *(flips * signs[:, None]))):
            np.maximum(best, (turned * flip).reshape(len(block), -1) @ target.T, out=best)
        yield best


def different_pairs(first: ImageSet, second: ImageSet) -> tuple[int, Positions]:
    """Return how many pairs are no copies, and those of them that correlate by CANDIDATES_FROM; (n, 2)."""
    n_pairs, found = 0, [np.empty((0, 2), np.int64)]
    names = np.array(second.originals)
    for number, block in enumerate(best_correlations(first.fingerprints, second.fingerprints)):
        rows = np.arange(500 * number, 500 * number + len(block))
        is_other = np.array(first.originals)[rows, None] != names if first is second else np.ones(block.shape, bool)
        if first is second:
            is_other &= rows[:, None] < np.arange(len(names))  # each pair once
        n_pairs += int(is_other.sum())
        hits = np.argwhere(is_other & (block >= CANDIDATES_FROM))
        found.append(hits + np.array([500 * number, 0]))
    return n_pairs, np.concatenate(found)


def print_different(name: str, first: ImageSet, second: ImageSet) -> None:
    """Print how many pairs of different images look alike by fingerprint, and of those by pixels."""
    n_pairs, pairs = different_pairs(first, second)
    together = pairs + np.array([0, len(first.greys)])
    symmetries, correlations = compare(np.concatenate([first.fingerprints, second.fingerprints]), together)
    measure = measure_of(np.concatenate([first.greys, second.greys]))
    agreement = measure(together, symmetries)
    counted = agreement * (TILE_WEIGHT if first is second and first.are_tiles else 1)
    is_merged = correlations >= LIMITS.min_correlation
    is_copy = counted >= MIN_AGREEMENT
    cells = [
        f"{n_pairs:,}",
        f"{is_merged.sum()}",
        f"{(is_merged & is_copy).sum()}",
        f"{(is_merged & ~is_copy & (counted >= DOUBTFUL_FROM)).sum()}",
        f"{len(pairs)}",
        f"{agreement.max(initial=-1):.3f}",
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def print_groups(name: str, images: ImageSet) -> None:
    """Print the near-duplicates in a data set as it is."""
    results = []
    by_pixels = measure_of(images.greys)
    for measure in (fingerprint_only, weighted(by_pixels) if images.are_tiles else by_pixels):
        pairs, doubtful = copy_pairs(images.fingerprints, images.sha256, LIMITS, measure)
        n_groups = len(set(connected_groups(len(images.greys), pairs[["first", "second"]].to_numpy()).tolist()))
        results.append(f"{len(pairs):,} pairs, {n_groups:,} groups, {len(doubtful)} doubtful pairs")
    print(f"- {name} ({len(images.greys):,} images): by fingerprints {results[0]}; by pixels {results[1]}", flush=True)


def print_cost(images: ImageSet) -> None:
    """Print the time per image and per pair, on one core."""
    pixels = [decode(content) for content in images.contents[:500]]
    pairs = np.stack([np.arange(500), np.arange(500)], axis=1)
    timings = {
        "an image: decoding": lambda: [decode(content) for content in images.contents[:500]],
        "an image: thumbnail and fingerprint": lambda: [fingerprint(thumbnail(image)) for image in pixels],
        "a pair: agreement of pixels": lambda: measure_of(images.greys)(pairs, np.zeros(500, np.int64)),
    }
    print("\n| one core | ms |\n| --- | ---: |")
    for name, run in timings.items():
        best_s = min(_seconds(run) for _ in range(5))
        print(f"| {name} | {1000 * best_s / 500:.3f} |")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chosen-on", type=Path, nargs="+", required=True, help="archives")
    parser.add_argument("--measured-on", type=Path, nargs="+", required=True, help="archives")
    parser.add_argument("--every", type=int, default=1, help="alter and search every n-th image (default: 1)")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[12_780, 25_000, 50_000, 100_000], help="images to search"
    )
    args = parser.parse_args()
    paths = [*args.chosen_on, *args.measured_on, project_root() / "data" / "demo.yaml"]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        sets = {path.stem: image_set(path, pool) for path in paths}
        for name, images in sets.items():
            print_groups(name, images)
        print("\n| different images | pairs | by fingerprints | by pixels | doubtful | correlation of 0.4 ", end="")
        print(f"| greatest agreement of these |\n| --- |{' ---: |' * 6}")
        for (name, first), (other, second) in itertools.combinations_with_replacement(sets.items(), 2):
            print_different(name if name == other else f"{name} and {other}", first, second)
        for name, images in sets.items():
            print_recall(name, images.every(args.every), pool)
        largest = max(sets.values(), key=lambda images: len(images.greys))
        print_cost(largest)
        if args.sizes:
            print_growth(largest.fingerprints, largest.contents, args.sizes, pool)


if __name__ == "__main__":
    main()
