"""Fingerprints of images, which detect near-duplicates in any of the eight symmetries of the square.

A fingerprint consists of the low frequencies of the image's discrete cosine transform (DCT), as in perceptual hashing
(pHash: Zauner 2010), scaled to equal strength, as in phase-only correlation (Kuglin and Hines 1975). Mirroring an image
flips the signs of the odd columns or rows of its DCT, and a quarter turn also transposes it. See docs/copies.md.
"""

import functools

import numpy as np
import numpy.typing as npt

Fingerprints = npt.NDArray[np.int8]  # (n, 32, 32); rows: half-waves from top to bottom, columns: from left to right

N_FREQUENCIES = 32  # half-waves along a side (16 periods), which JPEG quality 50 and resizing by 0.75 preserve
LOWEST_FREQUENCY = 3  # half-waves; lower ones are shading
INVARIANT_FREQUENCY = 16  # half-waves; fewer numbers suffice to find candidates than to compare them
MIN_STRENGTH = 0.005  # grey levels, mean of a DCT coefficient; rounding errors reach this, concrete 0.02 and more
BLOCK_PAIRS = 256  # compared at a time; 2 MB, the cache of a core

# Transformations from the first image of a pair to the second. Turned means anticlockwise, as in Pillow.
SYMMETRIES = (
    "saved again",
    "mirrored left-right",
    "mirrored up-down",
    "turned by 180 degrees",
    "transposed",
    "turned by 270 degrees",  # transposed, then mirrored left-right
    "turned by 90 degrees",
    "transversed",
)
# Signs by which the first four multiply (even row, even column), (even, odd), (odd, even) and (odd, odd).
_SIGNS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32)


@functools.cache
def _cosines(size_px: int) -> npt.NDArray[np.float32]:
    """Return the cosines of the DCT (type II), float32, shape (32, size_px)."""
    centres = (np.arange(size_px) + 0.5) / size_px
    waves = np.cos(np.pi * np.outer(np.arange(N_FREQUENCIES), centres))
    return np.asarray(waves * (np.sqrt(2) / size_px), np.float32)


@functools.cache
def _weights() -> npt.NDArray[np.float32]:
    """Return the weight of each frequency, float32, shape (32, 32): the frequency, or 0 where it is not used.

    That makes amplitudes in natural images, which are proportional to one over the frequency (Field 1987), even. The
    first row and column are not used: vignettes and joints, which many photos have in common, affect them.
    """
    frequency = np.hypot.outer(np.arange(N_FREQUENCIES), np.arange(N_FREQUENCIES))
    used = (frequency >= LOWEST_FREQUENCY) & (frequency < N_FREQUENCIES)
    used[0] = used[:, 0] = False
    return np.where(used, frequency, 0).astype(np.float32)


def fingerprint(grey: npt.NDArray[np.uint8]) -> Fingerprints:
    """Return the fingerprint of one image: int8, shape (32, 32), -127..127; all zeros for a plain image.

    `grey` is its grey thumbnail, uint8, square, of at least 64 px (two for each half-wave).
    """
    cosines = _cosines(len(grey))
    amplitudes = cosines @ grey.astype(np.float32) @ cosines.T  # grey levels, (32, 32)
    if np.abs(amplitudes[_weights() > 0]).mean() < MIN_STRENGTH:
        return np.zeros(amplitudes.shape, np.int8)
    # the root prevents a strong line from outweighing the grain
    even = np.sign(amplitudes) * np.sqrt(np.abs(amplitudes) * _weights())
    return np.asarray(np.rint(even * (127 / np.abs(even).max())), np.int8)


def invariants(fingerprints: Fingerprints) -> npt.NDArray[np.float32]:
    """Return a unit vector for each fingerprint, equal for all symmetries: float32, shape (n, n_dimensions).

    Mirroring changes only signs, and a quarter turn exchanges rows and columns: |a_uv| + |a_vu| is invariant.
    """
    low = slice(INVARIANT_FREQUENCY)
    rows, columns = np.nonzero(np.triu((_weights() > 0) & (_weights() < INVARIANT_FREQUENCY)))
    magnitudes = np.abs(fingerprints[:, low, low].astype(np.float32))
    vectors = magnitudes[:, rows, columns] + magnitudes[:, columns, rows]
    vectors -= vectors.mean(axis=1, keepdims=True)  # magnitudes are positive, so unrelated ones would correlate
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1), np.float32)


def compare(
    fingerprints: Fingerprints, pairs: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return for each pair of positions, (n_pairs, 2), the symmetry with the highest correlation, and that correlation.

    Symmetries are positions in SYMMETRIES; correlations are -1..1, 0 with a plain image. Both have shape (n_pairs,).
    """
    upright, transposed = _by_parity(fingerprints), _by_parity(fingerprints.transpose(0, 2, 1))
    correlations = np.empty((len(pairs), len(SYMMETRIES)), np.float32)
    for start in range(0, len(pairs), BLOCK_PAIRS):
        block = slice(start, start + BLOCK_PAIRS)
        first, second = pairs[block].T
        target = upright[second].astype(np.float32)  # (block, 4, 256)
        lengths = np.linalg.norm(target, axis=(1, 2))
        for half, turned in enumerate((upright, transposed)):
            source = turned[first].astype(np.float32)
            parts = np.einsum("npk,npk->np", source, target)  # (block, 4), a sum for each parity
            scale = np.maximum(lengths * np.linalg.norm(source, axis=(1, 2)), 1)  # 1: plain images have length 0
            correlations[block, 4 * half : 4 * half + 4] = np.einsum("np,sp->ns", parts, _SIGNS) / scale[:, None]
    return correlations.argmax(axis=1), correlations.max(axis=1)


def _by_parity(fingerprints: Fingerprints) -> Fingerprints:
    """Return the coefficients sorted by the parity of row and column, int8, shape (n, 4, 256)."""
    half = N_FREQUENCIES // 2
    pairs = fingerprints.reshape(-1, half, 2, half, 2)  # n, row, its parity, column, its parity
    return pairs.transpose(0, 2, 4, 1, 3).reshape(-1, 4, half * half)
