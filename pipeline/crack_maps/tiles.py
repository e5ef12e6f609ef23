"""Where the tiles of a photo are."""

import numpy as np
import numpy.typing as npt

Starts = npt.NDArray[np.int64]  # of tiles along a side, in pixels


def starts(length_px: int, size_px: int, step_px: int) -> Starts:
    """Return the starts of tiles along a side: every `step_px`; the last tile is moved inwards to end at the edge."""
    last = length_px - size_px
    return np.append(np.arange(0, last, step_px, dtype=np.int64), last)


def grid(shape_px: tuple[int, ...], size_px: int, overlap: float) -> tuple[Starts, Starts, int]:
    """Return the starts of the rows and of the columns of tiles, and the side of a tile, in pixels.

    In a photo (height, width) that is narrower than a tile, tiles are as narrow as the photo. `overlap` is the share
    of a tile that the next one in its row or column overlaps, 0..0.9.
    """
    size = min(size_px, *shape_px)
    step = max(1, round(size * (1 - overlap)))
    height_px, width_px = shape_px
    return starts(height_px, size, step), starts(width_px, size, step), size


def stretched(positions: Starts, last: int) -> Starts:
    """Return the starts of tiles in the photo, from those in the resized photo; the last start is `last`."""
    stretched: Starts = np.rint(positions * (last / max(1, positions[-1]))).astype(np.int64)
    return stretched
