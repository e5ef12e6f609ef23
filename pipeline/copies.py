"""Which images are copies of each other: byte-identical, saved again, mirrored or turned by 180 degrees.

An image is compared by its 24 x 24 grey thumbnail, less its mean, scaled to length one: a copy has a cosine near 1 with
the original in one of the four mirrorings, and nearly its brightness.
"""

import numpy as np
import numpy.typing as npt

from pipeline.params import Copies

Thumbnails = npt.NDArray[np.uint8]  # (n, 24, 24)

BLOCK_ROWS = 2048  # a block of similarities of 100,000 images is 800 MB at this size
PLAIN_CONTRAST = 1e-6  # a thumbnail of one colour has no direction to compare; only its bytes tell


def copy_pairs(thumbnails: Thumbnails, limits: Copies) -> npt.NDArray[np.int64]:
    """Return the pairs (i < j) of images that are copies of each other.

    Args:
        thumbnails: grey thumbnails, uint8, shape (n, 24, 24).
        limits: the least cosine and the largest difference of mean grey.

    Returns:
        Positions, int64, shape (n_pairs, 2).

    """
    n = len(thumbnails)
    brightness = thumbnails.mean(axis=(1, 2))
    vectors = _unit_vectors(thumbnails)
    mirrorings = [
        _unit_vectors(mirrored)
        for mirrored in (thumbnails, thumbnails[:, :, ::-1], thumbnails[:, ::-1], thumbnails[:, ::-1, ::-1])
    ]
    pairs = [np.empty((0, 2), np.int64)]
    for start in range(0, n, BLOCK_ROWS):
        later = slice(start, n)  # the rows before `start` have met these already
        similarity = vectors[start : start + BLOCK_ROWS] @ mirrorings[0][later].T  # (block, n - start)
        for mirrored in mirrorings[1:]:
            np.maximum(similarity, vectors[start : start + BLOCK_ROWS] @ mirrored[later].T, out=similarity)
        first, second = np.nonzero(similarity >= limits.min_similarity)
        found = np.stack([first, second], axis=1) + start  # (n_found, 2)
        alike = np.abs(brightness[found[:, 0]] - brightness[found[:, 1]]) <= limits.max_brightness_difference
        pairs.append(found[alike & (found[:, 0] < found[:, 1])])
    return np.concatenate(pairs)


def _unit_vectors(thumbnails: Thumbnails) -> npt.NDArray[np.float32]:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)  # (n, 576)
    flat -= flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    flat[lengths[:, 0] <= PLAIN_CONTRAST] = 0
    flat /= np.maximum(lengths, PLAIN_CONTRAST)
    return flat


def connected_groups(n: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each of n items the smallest position in its group, where every pair links two items; shape (n,)."""
    parent = np.arange(n)

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return np.array([root(item) for item in range(n)], dtype=np.int64)
