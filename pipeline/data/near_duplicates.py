"""Find near-duplicates: images that are identical, saved again, brightened, resized, mirrored or turned.

Byte-identical images are found by their sha256; of others, a nearest-neighbour index (faiss) returns candidates, and
the correlation of two fingerprints decides. docs/copies.md has measurements.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.data.fingerprints import N_FREQUENCIES, SYMMETRIES, Fingerprints, compare, invariants
from pipeline.params import Copies

Positions = npt.NDArray[np.int64]

N_NEIGHBOURS = 8  # of each image, compared with it
MAX_FLAT_IMAGES = 8192  # up to this number, comparing all vectors is faster than clustering them
N_PROBES = 8  # clusters that are searched around each image


def find_copies(inventory: pd.DataFrame, limits: Copies) -> pd.DataFrame:
    """Return the near-duplicates in an inventory, which has the columns sha256 and fingerprint: see `copy_pairs`."""
    fingerprints = np.frombuffer(b"".join(inventory["fingerprint"]), np.int8).reshape(-1, N_FREQUENCIES, N_FREQUENCIES)
    return copy_pairs(fingerprints, inventory["sha256"].tolist(), limits)


def copy_pairs(fingerprints: Fingerprints, sha256: Sequence[str], limits: Copies) -> pd.DataFrame:
    """Return pairs of near-duplicates. They connect all members of a group, but not each with every other.

    Columns are first and second (positions, int64, the smaller one first), kind (the transformation from the first
    image to the second, of SYMMETRIES, or "identical") and correlation (float32, 0..1).
    """
    _, firsts, of = np.unique(np.asarray(sha256), return_index=True, return_inverse=True)
    repeated = np.flatnonzero(firsts[of] != np.arange(len(of)))
    identical = np.stack([firsts[of[repeated]], repeated], axis=1)
    found = [_table(identical, ["identical"] * len(repeated), np.ones(len(repeated)))]
    # images of one colour have no fingerprint and are compared by sha256 only
    remaining = firsts[fingerprints[firsts].any(axis=(1, 2))].astype(np.int64)
    while len(remaining) > 1:
        pairs, is_crowded = _copies_among(fingerprints, remaining, limits)
        found.append(pairs)
        # an image whose neighbours are all copies may have more copies: search again with one image of each such group
        groups = connected_groups(len(fingerprints), pd.concat(found)[["first", "second"]].to_numpy())
        remaining = np.unique(groups[remaining[is_crowded]])
    return pd.concat(found, ignore_index=True)


def _table(pairs: Positions, kinds: Sequence[str], correlations: npt.ArrayLike) -> pd.DataFrame:
    columns = {"first": pairs[:, 0], "second": pairs[:, 1], "kind": kinds, "correlation": correlations}
    return pd.DataFrame(columns).astype({"first": "int64", "second": "int64", "kind": "str", "correlation": "float32"})


def _copies_among(
    fingerprints: Fingerprints, chosen: Positions, limits: Copies
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """Return the pairs of copies among neighbours, and for each `chosen` position whether all neighbours are copies."""
    neighbours = _neighbours(invariants(fingerprints[chosen]))
    nearby = np.repeat(np.arange(len(chosen)), neighbours.shape[1])[neighbours.ravel() >= 0]
    pairs = np.sort(np.stack([chosen[nearby], chosen[neighbours[neighbours >= 0]]], axis=1), axis=1)
    pairs, of = np.unique(pairs, axis=0, return_inverse=True)  # most pairs are found twice
    kinds, correlations = compare(fingerprints, pairs)
    is_copy = correlations >= limits.min_correlation
    is_crowded = np.bincount(nearby, weights=is_copy[of], minlength=len(chosen)) == N_NEIGHBOURS
    return _table(pairs[is_copy], [SYMMETRIES[kind] for kind in kinds[is_copy]], correlations[is_copy]), is_crowded


def _neighbours(vectors: npt.NDArray[np.float32]) -> Positions:
    """Return the nearest other vectors of each vector, shape (n, N_NEIGHBOURS), -1 if there are fewer.

    More than MAX_FLAT_IMAGES vectors are clustered, and only the nearest clusters are searched (inverted file; Jégou,
    Douze and Schmid 2011). The number of clusters is proportional to the root of n, the time to n^1.5, memory to n.
    """
    import faiss  # not needed by all users of this module

    n, n_dimensions = vectors.shape
    kind = "Flat" if n <= MAX_FLAT_IMAGES else f"IVF{int(2 * np.sqrt(n))},Flat"
    index = faiss.index_factory(n_dimensions, kind, faiss.METRIC_INNER_PRODUCT)
    if n > MAX_FLAT_IMAGES:
        faiss.extract_index_ivf(index).nprobe = N_PROBES
    index.train(vectors)
    index.add(vectors)
    _, found = index.search(vectors, N_NEIGHBOURS + 1)
    is_self = found == np.arange(n)[:, None]
    is_self[~is_self.any(axis=1), -1] = True  # more than N_NEIGHBOURS vectors equal it
    return np.asarray(found[~is_self].reshape(n, N_NEIGHBOURS), np.int64)


def connected_groups(n: int, pairs: Positions) -> Positions:
    """Return the smallest position in the connected component of each of n items, (n,); `pairs` are the edges."""
    graph = coo_array((np.ones(len(pairs), np.bool_), pairs.T), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    _, firsts = np.unique(component, return_index=True)
    return np.asarray(firsts[component], np.int64)
