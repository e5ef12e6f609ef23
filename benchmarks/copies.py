"""Measures how well and how fast near-duplicates are found, with copies made of real images.

    python -m benchmarks.copies --metu metu.zip --sdnet sdnet.zip --curve docs/copies.svg

Prints tables in Markdown. False merges are counted among images that are no copies: tiles of SDNET, which show
different places, and pairs of an image of METU and one of SDNET.
"""

import argparse
import hashlib
import itertools
import multiprocessing
import multiprocessing.pool
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from benchmarks.alterations import ALTERATIONS, LIMITS, fingerprint_of, read_images
from benchmarks.growth import print_growth
from pipeline.data.fingerprints import Fingerprints, compare, fingerprint
from pipeline.data.images import decode, thumbnail
from pipeline.data.near_duplicates import connected_groups, copy_pairs

THRESHOLDS = np.linspace(0, 1, 101)
Array = npt.NDArray[np.float64]


def altered_fingerprints(content: bytes) -> Fingerprints:
    """Return the fingerprints of all altered copies of an image, int8, shape (n_alterations, 32, 32)."""
    return np.stack([fingerprint_of(alter(content)) for alter in ALTERATIONS.values()])


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


def false_merges(first: Fingerprints, second: Fingerprints | None = None) -> tuple[int, npt.NDArray[np.int64], float]:
    """Return the number of pairs, the number at or above each threshold, and the greatest correlation, of no copies."""
    n_pairs, n_above, greatest = 0, np.zeros(len(THRESHOLDS), np.int64), -1.0
    done = 0
    for block in best_correlations(first, first if second is None else second):
        if second is None:  # each pair of two different images once
            block = block[np.arange(len(first)) > done + np.arange(len(block))[:, None]]
            done += 500
        block = block.ravel()
        n_pairs += len(block)
        n_above += len(block) - np.searchsorted(np.sort(block), THRESHOLDS)
        greatest = max(greatest, float(block.max(initial=-1)))
    return n_pairs, n_above, greatest


def recalls(originals: Fingerprints, sha256: list[str], rows: npt.NDArray[np.int64], copies: Fingerprints) -> Array:
    """Return for each alteration the share of copies that fall into the group of their original; (n_alterations,).

    Args:
        originals: fingerprints of the data set, shape (n, 32, 32).
        sha256: of their bytes.
        rows: which of them were altered, shape (n_altered,).
        copies: shape (n_altered, n_alterations, 32, 32).

    """
    names = sha256 + [f"copy {row}" for row in rows]
    found = []
    for kind in range(copies.shape[1]):
        pairs = copy_pairs(np.concatenate([originals, copies[:, kind]]), names, LIMITS)
        groups = connected_groups(len(names), pairs[["first", "second"]].to_numpy())
        found.append(np.mean(groups[len(originals) :] == groups[rows]))
    return np.array(found)


def measure_recall(
    name: str, originals: Fingerprints, images: list[bytes], every: int, pool: multiprocessing.pool.Pool
) -> tuple[Array, npt.NDArray[np.float32]]:
    """Return each alteration's recall and the correlations of copies with originals, (n_altered, n_alterations)."""
    rows = np.arange(0, len(images), every)
    copies = np.stack(pool.map(altered_fingerprints, [images[row] for row in rows], chunksize=16))
    sha256 = [hashlib.sha256(content).hexdigest() for content in images]
    share = recalls(originals, sha256, rows, copies)
    n_kinds = len(ALTERATIONS)
    both = np.concatenate([originals[rows], copies.reshape(-1, 32, 32)])
    pairs = np.stack([np.repeat(np.arange(len(rows)), n_kinds), len(rows) + np.arange(len(rows) * n_kinds)], axis=1)
    print(f"{name}: {len(images):,} images, {len(rows):,} of them altered in each way", flush=True)
    return share, compare(both, pairs)[1].reshape(-1, n_kinds)


def print_groups(name: str, fingerprints: Fingerprints, images: list[bytes]) -> None:
    """Print the near-duplicates in the original data set."""
    pairs = copy_pairs(fingerprints, [hashlib.sha256(content).hexdigest() for content in images], LIMITS)
    groups = connected_groups(len(images), pairs[["first", "second"]].to_numpy())
    sizes = np.unique(groups, return_counts=True)[1]
    print(f"\n{name} as it is: {len(images):,} images in {len(sizes):,} groups, the largest of {sizes.max()}; pairs:")
    for kind, count in pairs["kind"].value_counts().items():
        print(f"- {kind}: {count:,}")


def print_cost(images: list[bytes]) -> None:
    """Print the time per image, on one core."""
    pixels = [decode(content) for content in images[:500]]
    timings = {
        "decoding": lambda: [decode(content) for content in images[:500]],
        "thumbnail": lambda: [thumbnail(image) for image in pixels],
        "thumbnail and fingerprint": lambda: [fingerprint(thumbnail(image)) for image in pixels],
    }
    print("\n| an image costs | ms |\n| --- | ---: |")
    for name, run in timings.items():
        best_s = min(_seconds(run) for _ in range(5))
        print(f"| {name} | {1000 * best_s / len(pixels):.3f} |")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def draw_curve(
    path: Path, correlations: dict[str, npt.NDArray[np.float32]], merges_per_million: dict[str, Array]
) -> None:
    """Draw recall and false merges over the threshold into the SVG file `path`."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for (name, values), colour in zip(correlations.items(), ("tab:blue", "tab:orange"), strict=True):
        shares = (values[:, :, None] >= THRESHOLDS).mean(axis=0)  # (n_alterations, n_thresholds)
        for number, share in enumerate(shares):
            upper.plot(
                THRESHOLDS, share, colour, linewidth=0.7, label=None if number else f"{name}, a line for each kind"
            )
    for name, rate in merges_per_million.items():
        lower.plot(
            THRESHOLDS,
            np.where(rate > 0, rate, np.nan),
            marker=".",
            markevery=[int(np.flatnonzero(rate)[-1])],
            label=name,
        )
    upper.set(ylabel="recall", ylim=(0.9, 1.005), title="Copies found, and other images taken for copies")
    lower.set(
        ylabel="false merges per million pairs", xlabel="least correlation of two copies", yscale="log", xlim=(0, 1)
    )
    for axes in (upper, lower):
        axes.axvline(LIMITS.min_correlation, color="black", linestyle=":", label=f"threshold {LIMITS.min_correlation}")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left" if axes is upper else "upper right")
    with matplotlib.rc_context({"svg.hashsalt": "copies"}):  # the same file for the same numbers
        figure.savefig(path, metadata={"Date": None})


def print_recall(columns: dict[str, Array]) -> None:
    """Print a table of recalls, a row for each alteration."""
    print(f"\n| copy | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for row, kind in enumerate(ALTERATIONS):
        print(f"| {kind} | {' | '.join(f'{share[row]:.4f}' for share in columns.values())} |")


def print_false_merges(fingerprints: dict[str, Fingerprints]) -> dict[str, Array]:
    """Print the false merges among images that are no copies; return the rate per million pairs at each threshold."""
    rates = {}
    print("\n| no copies | pairs | greatest correlation | false merges per million |\n| --- | ---: | ---: | ---: |")
    for name, second in (("SDNET with itself", None), ("SDNET with METU", fingerprints["METU"])):
        n_pairs, n_above, greatest = false_merges(fingerprints["SDNET"], second)
        rates[name] = 1e6 * n_above / n_pairs
        rate = np.interp(LIMITS.min_correlation, THRESHOLDS, rates[name])
        print(f"| {name} | {n_pairs:,} | {greatest:.3f} | {rate:.3g} |", flush=True)
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="archive of METU")
    parser.add_argument("--sdnet", type=Path, required=True, help="archive of SDNET")
    parser.add_argument("--every", type=int, default=4, help="alter every n-th image (default: 4)")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[12_780, 25_000, 50_000, 100_000], help="images to search"
    )
    parser.add_argument("--curve", type=Path, help="SVG file to draw recall and false merges into")
    args = parser.parse_args()
    images = {"METU": read_images(args.metu), "SDNET": read_images(args.sdnet)}
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        fingerprints = {
            name: np.stack(pool.map(fingerprint_of, contents, chunksize=64)) for name, contents in images.items()
        }
        for name, contents in images.items():
            print_groups(name, fingerprints[name], contents)
        measured = {name: measure_recall(name, fingerprints[name], images[name], args.every, pool) for name in images}
        columns = {name: share for name, (share, _) in measured.items()}
        print_recall(columns)
        rates = print_false_merges(fingerprints)
        if args.curve:
            draw_curve(args.curve, {name: values for name, (_, values) in measured.items()}, rates)
        print_cost(images["METU"])
        if args.sizes:
            print_growth(fingerprints["METU"], images["METU"], args.sizes, pool)


if __name__ == "__main__":
    main()
