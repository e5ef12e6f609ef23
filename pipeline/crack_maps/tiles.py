"""Cuts a photo into square tiles that cover every pixel and stay inside the photo."""

import numpy as np
import numpy.typing as npt

Starts = npt.NDArray[np.int64]  # of tiles along a side, in pixels


def starts(length_px: int, size_px: int, step_px: int) -> Starts:
    """Return the starts of tiles along a side: every `step_px`; the last tile is moved inwards to end at the edge.

    The side is as long as a tile or longer; the step is as long as a tile or shorter.
    """
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
