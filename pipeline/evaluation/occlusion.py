"""Occlusion maps: how much an output changes when a part of the image is hidden (Zeiler and Fergus 2014)."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Pixels

# from RGB, uint8, (n, height, width, 3), to the probabilities of a crack, (n,)
Scorer = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]

N_CELLS_A_SIDE = 7
LOGIT_LIMIT = 1e-6  # probabilities are clipped to this distance from 0 and 1, the resolution of float32


def occlusion_map(score: Scorer, pixels: Pixels) -> npt.NDArray[np.float64]:
    """Return how much each cell of a 7 by 7 grid contributes to a crack prediction, in logits, (7, 7).

    A value is the logit of the full image minus the logit with the cell hidden: positive if hiding the cell makes a
    crack less likely. Hidden cells are filled with the mean colour of the image.
    """
    probabilities = np.clip(score(_with_one_cell_hidden(pixels)).astype(np.float64), LOGIT_LIMIT, 1 - LOGIT_LIMIT)
    logits = np.log(probabilities / (1 - probabilities))
    return np.asarray(logits[0] - logits[1:]).reshape(N_CELLS_A_SIDE, N_CELLS_A_SIDE)


def _with_one_cell_hidden(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Return the image, then the image with each cell hidden, row by row: (1 + 49, height, width, 3)."""
    height, width, _ = pixels.shape
    tops, lefts = (np.linspace(0, length, N_CELLS_A_SIDE + 1).round().astype(int) for length in (height, width))
    batch = np.repeat(pixels[None], 1 + N_CELLS_A_SIDE**2, axis=0)
    colour = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    for cell in range(N_CELLS_A_SIDE**2):
        row, column = divmod(cell, N_CELLS_A_SIDE)
        batch[1 + cell, tops[row] : tops[row + 1], lefts[column] : lefts[column + 1]] = colour
    return batch
