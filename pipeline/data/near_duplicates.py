"""Which images are copies of each other: byte-identical, saved again, brightened, resized, mirrored or turned.

Byte-identical images are found by their sha256, the others by their fingerprints: a nearest-neighbour index (faiss)
gives candidates for each image, so that not every image is compared with every other, and the correlation of two
fingerprints decides. See docs/copies.md for what was measured.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.fingerprints import N_FREQUENCIES, SYMMETRIES, Fingerprints, compare, invariants
from pipeline.params import Copies

Positions = npt.NDArray[np.int64]

KINDS = (*SYMMETRIES, "identical")
IDENTICAL = KINDS.index("identical")

N_NEIGHBOURS = 8  # of each image are compared with it
MAX_FLAT_IMAGES = 8192  # up to here comparing all vectors is faster than clustering them
N_PROBES = 8  # clusters that are searched around each image


class CopyPairs(NamedTuple):
    """Pairs of copies. They link all members of a group of copies, but not each with each."""

    positions: Positions  # (n_pairs, 2), the smaller one first
    kinds: Positions  # (n_pairs,), in KINDS: what the second image is, seen from the first
    correlations: npt.NDArray[np.float32]  # (n_pairs,), 0..1


def find_copies(inventory: pd.DataFrame, limits: Copies) -> pd.DataFrame:
    """Return the copies among the images of an inventory: columns first, second (positions), kind, correlation.

    Args:
        inventory: columns sha256 and fingerprint (bytes).
        limits: the least correlation of two copies.
    """
    fingerprints = np.frombuffer(b"".join(inventory["fingerprint"]), np.int8).reshape(-1, N_FREQUENCIES, N_FREQUENCIES)
    found = copy_pairs(fingerprints, inventory["sha256"].tolist(), limits)
    return pd.DataFrame(
        {
            "first": found.positions[:, 0],
            "second": found.positions[:, 1],
            "kind": np.array(KINDS)[found.kinds],
            "correlation": found.correlations,
        }
    )


def copy_pairs(fingerprints: Fingerprints, sha256: Sequence[str], limits: Copies) -> CopyPairs:
    """Return the pairs of images that are copies of each other.

    Args:
        fingerprints: int8, shape (n, 32, 32).
        sha256: of each image's bytes.
        limits: the least correlation of two copies.

    """
    _, firsts, of = np.unique(np.asarray(sha256), return_index=True, return_inverse=True)
    repeated = np.flatnonzero(firsts[of] != np.arange(len(of)))
    found = [
        CopyPairs(
            np.stack([firsts[of[repeated]], repeated], axis=1).astype(np.int64),
            np.full(len(repeated), IDENTICAL, np.int64),
            np.ones(len(repeated), np.float32),
        )
    ]
    # of images of one colour only the bytes tell
    waiting = firsts[fingerprints[firsts].any(axis=(1, 2))].astype(np.int64)
    while len(waiting) > 1:
        pairs, is_crowded = _copies_among(fingerprints, waiting, limits)
        found.append(pairs)
        # an image whose neighbours are all copies may have more of them: one image of each such group looks further
        groups = connected_groups(len(fingerprints), np.concatenate([part.positions for part in found]))
        waiting = np.unique(groups[waiting[is_crowded]])
    positions, kinds, correlations = (np.concatenate(column) for column in zip(*found, strict=True))
    return CopyPairs(positions, kinds, correlations)


def _copies_among(
    fingerprints: Fingerprints, chosen: Positions, limits: Copies
) -> tuple[CopyPairs, npt.NDArray[np.bool_]]:
    """Return the chosen images' copies among their nearest neighbours, and whether all neighbours of each are copies.

    Args:
        fingerprints: of all images, int8, shape (n, 32, 32).
        chosen: positions, shape (n_chosen,).
        limits: the least correlation of two copies.

    """
    neighbours = _neighbours(invariants(fingerprints[chosen]))
    nearby = np.repeat(np.arange(len(chosen)), neighbours.shape[1])[neighbours.ravel() >= 0]
    pairs = np.sort(np.stack([chosen[nearby], chosen[neighbours[neighbours >= 0]]], axis=1), axis=1)
    keys, of = np.unique(pairs[:, 0] * len(fingerprints) + pairs[:, 1], return_inverse=True)  # most are found twice
    pairs = np.stack(np.divmod(keys, len(fingerprints)), axis=1)
    kinds, correlations = compare(fingerprints, pairs)
    is_copy = correlations >= limits.min_correlation
    is_crowded = np.bincount(nearby, weights=is_copy[of], minlength=len(chosen)) == N_NEIGHBOURS
    return CopyPairs(pairs[is_copy], kinds[is_copy], correlations[is_copy]), is_crowded


def _neighbours(vectors: npt.NDArray[np.float32]) -> Positions:
    """Return the nearest other vectors of each, shape (n, N_NEIGHBOURS), -1 where there are fewer.

    Many vectors are clustered and only the clusters nearest to each are searched (an inverted file; Jégou, Douze and
    Schmid 2011). The clusters grow in number with the root of n: time grows with n^1.5, memory with n.
    """
    import faiss  # ingest, which makes the fingerprints, does without

    n, n_dimensions = vectors.shape
    kind = "Flat" if n <= MAX_FLAT_IMAGES else f"IVF{int(2 * np.sqrt(n))},Flat"
    index = faiss.index_factory(n_dimensions, kind, faiss.METRIC_INNER_PRODUCT)
    if n > MAX_FLAT_IMAGES:
        faiss.extract_index_ivf(index).nprobe = N_PROBES
    index.train(vectors)
    index.add(vectors)
    _, found = index.search(vectors, N_NEIGHBOURS + 1)
    is_self = found == np.arange(n)[:, None]
    is_self[~is_self.any(axis=1), -1] = True  # crowded out by its equals
    return np.asarray(found[~is_self].reshape(n, N_NEIGHBOURS), np.int64)


def connected_groups(n: int, pairs: Positions) -> Positions:
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
