"""How well two images agree pixel by pixel, after one is mirrored, turned and shifted onto the other.

A fingerprint compares whole images, so that a dark hole or a joint at the same place can outweigh the grain of two
different ones. Here brightness and contrast are normalised around each pixel, and the images are compared block by
block: in copies all blocks agree, in different images with something in common only few do. See docs/copies.md.
"""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

Greys = npt.NDArray[np.uint8]  # (n, size_px, size_px)
Values = npt.NDArray[np.float32]

SURROUNDINGS_PX = 9  # side of the square around a pixel for local contrast normalisation
MAX_SHIFT_SHARE = 1 / 8  # of a side
N_BLOCKS = 4  # along a side
MIN_CONTRAST = 0.5  # grey levels; blocks of less, such as overexposed ones, hold only rounding errors
MIN_BLOCKS = 4  # with contrast in both images; with fewer, all blocks count


def agreements(first: Greys, second: Greys, symmetries: npt.NDArray[np.int64]) -> Values:
    """Return the agreement of each pair of grey thumbnails: -1..1, float32, shape (n,).

    It is the median, over the blocks of the image, of the correlation of locally normalised pixels. `symmetries` are
    the transformations of the first thumbnails to the second: positions in `fingerprints.SYMMETRIES`.
    """
    moved = np.stack([_transformed(grey, symmetry) for grey, symmetry in zip(first, symmetries, strict=True)])
    a, b = _normalised(moved), _normalised(second)
    b, is_inside = _shifted(b, _shifts(a, b))
    a, b = _blocks(a * is_inside), _blocks(b)
    n_pixels = np.maximum(_blocks(is_inside.astype(np.float32)).sum(axis=2), 1)
    weakest = np.minimum((a**2).sum(axis=2), (b**2).sum(axis=2)) / n_pixels  # square of the contrast, (n, n_blocks)
    a, b = a - a.mean(axis=2, keepdims=True), b - b.mean(axis=2, keepdims=True)
    lengths = np.sqrt((a**2).sum(axis=2) * (b**2).sum(axis=2))
    correlations = (a * b).sum(axis=2) / np.maximum(lengths, 1e-6)
    counts = weakest >= MIN_CONTRAST**2
    counts |= counts.sum(axis=1, keepdims=True) < MIN_BLOCKS
    return np.asarray(np.nanmedian(np.where(counts, correlations, np.nan), axis=1), np.float32)


def _transformed(grey: Greys, symmetry: int) -> Greys:
    """Return the image in another of the eight symmetries, in the order of `fingerprints.SYMMETRIES`."""
    turned = grey.T if symmetry >= 4 else grey
    return turned[:: -1 if symmetry & 2 else 1, :: -1 if symmetry & 1 else 1]


def _normalised(greys: Greys) -> Values:
    """Return the images with a mean of 0 and a standard deviation of 1, or less if they have less, at each place."""
    square = (1, SURROUNDINGS_PX, SURROUNDINGS_PX)
    levels = greys.astype(np.float32)
    levels -= uniform_filter(levels, square)
    contrast = np.sqrt(uniform_filter(levels**2, square).clip(1))  # at least 1: rounding is not amplified
    return np.asarray(levels / contrast, np.float32)


def _shifts(a: Values, b: Values) -> npt.NDArray[np.int64]:
    """Return for each pair the shift of `b` against `a` with the greatest correlation: rows, columns; (n, 2)."""
    size_px = a.shape[1]
    products = np.fft.irfft2(np.fft.rfft2(b) * np.conj(np.fft.rfft2(a)), a.shape[1:])
    reach = int(MAX_SHIFT_SHARE * size_px)
    offsets = np.arange(-reach, reach + 1)
    near = products[:, offsets[:, None], offsets]
    best = near.reshape(len(a), -1).argmax(axis=1)
    return np.stack(np.unravel_index(best, near.shape[1:]), axis=1) - reach


def _shifted(images: Values, shifts: npt.NDArray[np.int64]) -> tuple[Values, npt.NDArray[np.bool_]]:
    """Return the images shifted back, 0 where there is no pixel, and where there is one."""
    size_px = images.shape[1]
    places = np.arange(size_px) + shifts[:, :, None]  # n, (row, column), size_px
    is_inside = (places >= 0) & (places < size_px)
    inside = is_inside[:, 0, :, None] & is_inside[:, 1, None, :]
    rows, columns = places.clip(0, size_px - 1).transpose(1, 0, 2)
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]] * inside, inside


def _blocks(images: Values) -> Values:
    """Return the images as (n, n_blocks, n_pixels)."""
    n, side_px = len(images), images.shape[1] // N_BLOCKS
    blocks = images.reshape(n, N_BLOCKS, side_px, N_BLOCKS, side_px).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(n, N_BLOCKS**2, -1)
