"""Measures the usual method for near-duplicates, for comparison: phash of ImageHash, which is not a dependency."""

import io
import multiprocessing.pool

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.alterations import ALTERATIONS, TURNS

Array = npt.NDArray[np.float64]


def hashes(task: tuple[bytes, int, bool]) -> npt.NDArray[np.bool_]:
    """Return ImageHash's phash of an image in its eight orientations, or of its altered copies; shape (n, n_bits)."""
    import imagehash

    content, hash_size, is_original = task
    if is_original:
        image = Image.open(io.BytesIO(content))
        views = [image, *(image.transpose(turn) for turn in TURNS)]
    else:
        views = [Image.open(io.BytesIO(alter(content))) for alter in ALTERATIONS.values()]
    return np.stack([imagehash.phash(view, hash_size).hash.ravel() for view in views])


def imagehash_recall(
    datasets: dict[str, list[bytes]], every: int, hash_size: int, pool: multiprocessing.pool.Pool
) -> tuple[list[Array], int]:
    """Return phash's recall for each data set, (n_alterations,), at the greatest distance without a false merge.

    No two images of SDNET may be merged; the distance of two images is the smallest in the eight orientations.
    """
    views = np.stack(pool.map(hashes, [(content, hash_size, True) for content in datasets["SDNET"]], chunksize=16))
    n_bits = views.shape[2]
    signed = 2 * views.astype(np.float32) - 1  # the product of two is n_bits - 2 x their distance
    agreement = np.max([signed[:, view] @ signed[:, 0].T for view in range(8)], axis=0)
    limit = int((n_bits - agreement[np.triu_indices(len(views), 1)].max()) / 2) - 1
    shares = []
    for images in datasets.values():
        tasks = [[(content, hash_size, kind) for content in images[::every]] for kind in (True, False)]
        originals, copies = (np.stack(pool.map(hashes, part, chunksize=16)) for part in tasks)
        distance = (originals[:, :, None] != copies[:, None]).sum(axis=3).min(axis=1)  # (n, n_alterations)
        shares.append((distance <= limit).mean(axis=0))
    return shares, limit


def phash_recalls(datasets: dict[str, list[bytes]], every: int, pool: multiprocessing.pool.Pool) -> dict[str, Array]:
    """Return the columns of the table of recalls for hashes of 64 and of 256 bits."""
    columns = {}
    for hash_size in (8, 16):
        shares, limit = imagehash_recall(datasets, every, hash_size, pool)
        for name, share in zip(datasets, shares, strict=True):
            columns[f"{name}, phash of {hash_size**2} bits within {limit}"] = share
    return columns
