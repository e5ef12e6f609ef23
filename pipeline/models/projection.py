"""Random projection of features to a few dimensions that nearly preserves distances."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

# A product of 16 images and so many features to 64 dimensions is the largest that OpenBLAS computes in the calling
# thread. Threads of its own would compete with those that run the network: a map then takes three times the CPU time.
BLOCK_FEATURES = 256

Projected = npt.NDArray[np.float32]  # (n, n_dimensions)


def project(features: npt.NDArray[np.floating[Any]], n_dimensions: int) -> Projected:
    """Return features, (n, n_features), projected to (n, n_dimensions).

    A Gaussian random projection of the square roots of the features' shares of their sum. Distances are then Hellinger
    distances, which a few strong features do not dominate (Arandjelovic and Zisserman 2012). Features keep their sign.
    """
    values = np.asarray(features, np.float32)
    totals = np.abs(values).sum(axis=1, keepdims=True)
    shares = np.divide(values, totals, out=np.zeros_like(values), where=totals > 0)
    roots = np.sign(shares) * np.sqrt(np.abs(shares))
    matrix = _matrix(values.shape[1], n_dimensions)
    blocks = (slice(start, start + BLOCK_FEATURES) for start in range(0, values.shape[1], BLOCK_FEATURES))
    return np.asarray(sum(roots[:, block] @ matrix[block] for block in blocks))


@lru_cache(maxsize=8)
def _matrix(n_features: int, n_dimensions: int) -> Projected:
    # RandomState, because its stream never changes: stored projections must stay comparable with those by a later NumPy
    matrix = np.random.RandomState(0).standard_normal((n_features, n_dimensions))
    return np.asarray(matrix / np.sqrt(n_dimensions), np.float32)
