"""Find near-duplicates: images that are identical, saved again, brightened, resized, mirrored or turned.

Byte-identical images are found by their sha256; of others, a nearest-neighbour index (faiss) returns candidates, the
correlation of two fingerprints chooses among them, and their pixels decide. docs/copies.md has measurements.
"""

import os
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.data.fingerprints import N_FREQUENCIES, SYMMETRIES, Fingerprints, compare, invariants
from pipeline.data.images import Images, thumbnail
from pipeline.data.pixel_agreement import Values, agreements
from pipeline.params import CONTENT_ID_LENGTH, Copies

Positions = npt.NDArray[np.int64]
Measure = Callable[[Positions, Positions], Values]  # pairs (n, 2) and their symmetries (n,) -> agreements (n,)

N_NEIGHBOURS = 8  # of each image, compared with it
MAX_FLAT_IMAGES = 8192  # up to this number, comparing all vectors is faster than clustering them
N_PROBES = 8  # clusters that are searched around each image
CHUNK_PAIRS = 128  # whose pixels a thread compares at a time; 30 MB

# Agreements from which two images are copies, or perhaps are; docs/copies.md has measurements.
MIN_AGREEMENT = 0.25
DOUBTFUL_FROM = 0.15
TILE_WEIGHT = 0.625  # of an agreement between tiles of known photos, which show two places unless one was filed twice


def find_copies(inventory: pd.DataFrame, images: Images, limits: Copies) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the near-duplicates among `images`, and the doubtful pairs: see `copy_pairs`.

    `inventory` has the columns sha256, fingerprint and photo, and dataset if the images are of several data sets.
    """
    fingerprints = np.frombuffer(b"".join(inventory["fingerprint"]), np.int8).reshape(-1, N_FREQUENCIES, N_FREQUENCIES)
    ids = inventory["sha256"].str[:CONTENT_ID_LENGTH].to_numpy()
    datasets = inventory["dataset"] if "dataset" in inventory else pd.Series("", inventory.index)
    tiles_of = pd.factorize(datasets.where(inventory["photo"].notna()))[0]  # -1 where the photo is not known
    not_copies = {frozenset(pair) for pair in limits.not_copies}

    def measure(pairs: Positions, symmetries: Positions) -> Values:
        agreement = _agreement_of_pixels(images, pairs, symmetries)
        first, second = tiles_of[pairs].T
        agreement[(first == second) & (first >= 0)] *= TILE_WEIGHT
        agreement[[frozenset(pair) in not_copies for pair in ids[pairs].tolist()]] = 0
        return agreement

    return copy_pairs(fingerprints, inventory["sha256"].tolist(), limits, measure)


def _agreement_of_pixels(images: Images, pairs: Positions, symmetries: Positions) -> Values:
    """Return the agreement of each pair of images, which are decoded in threads."""

    def compare_chunk(pairs: Positions, symmetries: Positions) -> Values:
        positions, of = np.unique(pairs, return_inverse=True)
        greys = np.stack([thumbnail(images.pixels(int(position))) for position in positions])
        first, second = of.reshape(-1, 2).T
        return agreements(greys[first], greys[second], symmetries)

    chunks = [slice(start, start + CHUNK_PAIRS) for start in range(0, len(pairs), CHUNK_PAIRS)]
    with ThreadPool(os.cpu_count()) as pool:
        measured = pool.starmap(compare_chunk, [(pairs[chunk], symmetries[chunk]) for chunk in chunks])
    return np.concatenate([np.empty(0, np.float32), *measured])


def copy_pairs(
    fingerprints: Fingerprints, sha256: Sequence[str], limits: Copies, measure: Measure
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the pairs of near-duplicates, and the pairs of which that is doubtful.

    The former connect all members of a group, but not each with every other. Columns of both are first and second
    (positions, int64, the smaller one first), kind (the transformation from the first image to the second, of
    SYMMETRIES, or "identical") and agreement (by `measure`, float32).
    """
    _, firsts, of = np.unique(np.asarray(sha256), return_index=True, return_inverse=True)
    repeated = np.flatnonzero(firsts[of] != np.arange(len(of)))
    identical = np.stack([firsts[of[repeated]], repeated], axis=1)
    found = _table(identical, ["identical"] * len(repeated), np.ones(len(repeated), np.float32))
    groups = _groups(len(fingerprints), found)
    # images of one colour have no fingerprint and are compared by sha256 only
    remaining = firsts[fingerprints[firsts].any(axis=(1, 2))].astype(np.int64)
    while len(remaining) > 1:
        pairs, is_crowded = _copies_among(fingerprints, remaining, limits, measure)
        found = pd.concat([found, pairs], ignore_index=True)
        # an image whose neighbours are all copies may have more copies: search again with one image of each such group
        groups = _groups(len(fingerprints), found)
        remaining = np.unique(groups[remaining[is_crowded]])
    is_doubtful = groups[found["first"]] != groups[found["second"]]  # and other images do not link them
    doubtful = found[is_doubtful].drop_duplicates(["first", "second"], ignore_index=True)
    return found[found["agreement"] >= MIN_AGREEMENT].reset_index(drop=True), doubtful


def _table(pairs: Positions, kinds: Sequence[str], agreement: Values) -> pd.DataFrame:
    columns = {"first": pairs[:, 0], "second": pairs[:, 1], "kind": pd.Series(kinds, dtype="str")}
    return pd.DataFrame(columns | {"agreement": agreement})


def _groups(n: int, found: pd.DataFrame) -> Positions:
    return connected_groups(n, found.loc[found["agreement"] >= MIN_AGREEMENT, ["first", "second"]].to_numpy())


def _copies_among(
    fingerprints: Fingerprints, chosen: Positions, limits: Copies, measure: Measure
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """Return the pairs among neighbours that are or may be copies, and for each `chosen` position whether all are."""
    neighbours = _neighbours(invariants(fingerprints[chosen]))
    nearby = np.repeat(np.arange(len(chosen)), neighbours.shape[1])[neighbours.ravel() >= 0]
    pairs = np.sort(np.stack([chosen[nearby], chosen[neighbours[neighbours >= 0]]], axis=1), axis=1)
    pairs, of = np.unique(pairs, axis=0, return_inverse=True)  # most pairs are found twice
    kinds, correlations = compare(fingerprints, pairs)
    candidates = np.flatnonzero(correlations >= limits.min_correlation)
    agreement = np.zeros(len(pairs), np.float32)
    agreement[candidates] = measure(pairs[candidates], kinds[candidates])
    is_crowded = np.bincount(nearby, weights=(agreement >= MIN_AGREEMENT)[of], minlength=len(chosen)) == N_NEIGHBOURS
    found = agreement >= DOUBTFUL_FROM
    return _table(pairs[found], [SYMMETRIES[kind] for kind in kinds[found]], agreement[found]), is_crowded


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
