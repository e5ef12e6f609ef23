"""Measures time, memory and recall of the search for near-duplicates in data sets of several sizes."""

import multiprocessing
import multiprocessing.pool
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.alterations import ALTERATIONS, LIMITS, fingerprint_of, fingerprint_only, new_piece
from pipeline.data.fingerprints import Fingerprints, fingerprint
from pipeline.data.images import thumbnail
from pipeline.data.near_duplicates import connected_groups, copy_pairs

SEED = 0
COPIES_SHARE = 0.1  # of the images that are added


def grown(task: tuple[int, int, bytes]) -> Fingerprints:
    """Return the fingerprint of a copy of `content`, or of a new piece cut out of it where the alteration is -1."""
    number, alteration, content = task
    if alteration >= 0:
        return fingerprint_of(list(ALTERATIONS.values())[alteration](content))
    return fingerprint(thumbnail(np.asarray(new_piece(content, number))))


def timed_search(path: str, results: "multiprocessing.Queue[tuple[float, int, npt.NDArray[np.int64]]]") -> None:
    """Group the fingerprints in a file; put seconds, peak memory in bytes and groups into `results`."""
    fingerprints = np.load(path)
    start = time.perf_counter()
    pairs, _ = copy_pairs(fingerprints, [str(row) for row in range(len(fingerprints))], LIMITS, fingerprint_only)
    groups = connected_groups(len(fingerprints), pairs[["first", "second"]].to_numpy())
    seconds = time.perf_counter() - start
    # not from getrusage, which includes the size of the parent process
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    results.put((seconds, 1024 * int(peak.split()[1]), groups))


def print_growth(
    originals: Fingerprints, images: list[bytes], sizes: list[int], pool: multiprocessing.pool.Pool
) -> None:
    """Print time, peak memory and recall of the search in data sets of `sizes` images, grown from `images`."""
    rng = np.random.default_rng(SEED)
    n_new = max(0, max(sizes) - len(images))
    rows = rng.integers(len(images), size=n_new)
    alterations = np.where(rng.random(n_new) < COPIES_SHARE, rng.integers(len(ALTERATIONS), size=n_new), -1)
    tasks = ((number, int(alterations[number]), images[row]) for number, row in enumerate(rows))
    new = list(pool.imap(grown, tasks, chunksize=256))
    everything = np.concatenate([originals, np.stack(new)]) if new else originals
    print("\n| images | search (s) | peak memory (GB) | copies found |\n| ---: | ---: | ---: | ---: |")
    context = multiprocessing.get_context("spawn")  # one process per size, to measure its peak memory
    for size in sizes:
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file.name, everything[:size])
            results = context.Queue()
            process = context.Process(target=timed_search, args=(file.name, results))
            process.start()
            seconds, n_bytes, groups = results.get()
            process.join()
        is_copy = np.flatnonzero(alterations[: max(0, size - len(images))] >= 0)
        n_found = np.sum(groups[len(images) + is_copy] == groups[rows[is_copy]])
        print(f"| {size:,} | {seconds:.1f} | {n_bytes / 1e9:.2f} | {n_found:,} of {len(is_copy):,} |", flush=True)
