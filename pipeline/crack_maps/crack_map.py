"""From a photo of any size to where its cracks are: tiles, scored by the served form of a model.

It takes pixels and gives tables; whoever calls it reads and writes the files.

Tiles are scored one by one, as the network saw images in training. Convolving the whole photo once would save time
where tiles overlap, but gives other answers: at the edge of an image the network was trained on padding, not on what
lies beyond (`python -m benchmarks.convolve_once` says by how much).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pipeline.crack_maps.tiles import Starts, grid
from pipeline.data.images import Pixels
from pipeline.errors import CracksError
from pipeline.inference.openvino_cpu import N_THREADS, Outputs
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, Projections, Surface, detector_projection
from pipeline.inference.served import ServedModel
from pipeline.params import Map

BATCH_TILES = 4  # activations of more do not fit the cache, and take longer
CHUNK_TILES = 1024  # whose features are held at once, 25 kB each
CELL_PX = 16  # of the raster by which areas are measured and overlay is drawn
MIN_SIDE_PX = 32
MAX_RESIZED_PIXELS = 200_000_000  # 600 MB

OnTiles = Callable[[Pixels, Outputs], object]
Raster = npt.NDArray[np.float64]  # (rows, columns), a value for each cell of 16 x 16 px


@dataclass(frozen=True)
class CrackMap:
    """What a model says of a photo.

    Attributes:
        tiles: a row a tile: row, col, x, y, size (pixels of the upright photo), probability (0..1), label (crack,
            intact or review), in_distribution (whether it looks like concrete that the model knows; None where that is
            not recorded).
        width_px: of the upright photo.
        height_px: of the upright photo.
        overlap: of neighbouring tiles, as a share of a tile.
        scale: what the ground resolution was used for, in words.
        surface: the test surface that the photo looks most like, with how many cracks the model missed there.
    """

    tiles: pd.DataFrame
    width_px: int
    height_px: int
    overlap: float
    scale: str
    surface: Surface | None

    def share_of_area(self, label: str) -> float:
        """Return the share of the photo's area that lies under a tile of this label, 0..1."""
        covered = self.raster((self.tiles["label"] == label).to_numpy(float))
        return float((covered > 0).mean())

    def raster(self, values: npt.NDArray[np.floating[Any] | np.bool_]) -> Raster:
        """Return the mean of the values of the tiles, (n,), over each cell of 16 x 16 px."""
        shape = -(-self.height_px // CELL_PX), -(-self.width_px // CELL_PX)
        total, n_tiles = np.zeros(shape), np.zeros(shape)
        for (top, left, size), value in zip(self.tiles[["y", "x", "size"]].to_numpy(), values, strict=True):
            cells = _cells(top, size, self.height_px), _cells(left, size, self.width_px)
            total[cells] += value
            n_tiles[cells] += 1
        return total / np.maximum(n_tiles, 1)


class CrackMapper:
    """A model, ready to map photos; may be used from several threads at once."""

    def __init__(self, model: ServedModel, params: Map, known: OutOfDistributionDetector | None = None) -> None:
        """Take a model, how photos are cut, and the concrete that the model knows, where that is recorded."""
        self._model = model
        self._params = params
        self._known = known
        self._pool = ThreadPoolExecutor(N_THREADS)

    def map(self, pixels: Pixels, mm_per_px: float | None = None, on_tiles: OnTiles | None = None) -> CrackMap:
        """Return the map of a photo.

        Args:
            pixels: of the upright photo, RGB, uint8, (height, width, 3).
            mm_per_px: ground resolution of the photo, where it is known.
            on_tiles: is told of each batch of tiles, (n, size, size, 3), and its outputs, in no order, from threads.

        Raises:
            CracksError: the photo is too small, or its ground resolution is out of all proportion to the model's.
        """
        height, width, _ = pixels.shape
        if min(height, width) < MIN_SIDE_PX:
            raise CracksError(f"The photo has {width} x {height} px. A side needs {MIN_SIDE_PX} px or more.")
        factor, scale = self._scale(mm_per_px, height, width)
        resized = pixels if factor == 1 else _resized(pixels, factor)
        tops, lefts, size = grid(resized.shape[:2], self._params.tile_px, self._params.overlap)
        places = [(row, col, top, left) for row, top in enumerate(tops) for col, left in enumerate(lefts)]
        probabilities, images = self._scored(resized, [place[2:] for place in places], size, on_tiles)
        shown_px = min(round(size / factor), height, width)
        ys, xs = _stretched(tops, height - shown_px), _stretched(lefts, width - shown_px)
        tiles = pd.DataFrame(
            {
                "row": [row for row, *_ in places],
                "col": [col for _, col, *_ in places],
                "x": [xs[col] for _, col, *_ in places],
                "y": [ys[row] for row, *_ in places],
                "size": shown_px,
                "probability": probabilities,
            }
        )
        in_distribution = None if self._known is None else self._known.is_in_distribution(images)
        surface = None if self._known is None else self._known.nearest_surface(images)
        verdicts = [self._model.decision.verdict(float(probability)) for probability in probabilities]
        tiles["label"] = verdicts if in_distribution is None else np.where(in_distribution, verdicts, "review")
        tiles["in_distribution"] = in_distribution
        return CrackMap(tiles, width, height, self._params.overlap, scale, surface)

    def _scale(self, mm_per_px: float | None, height: int, width: int) -> tuple[float, str]:
        """Return the factor by which a photo is resized before it is cut, and in words what is known of its scale."""
        trained_at = self._params.model_mm_per_px
        if trained_at is None:
            return (
                1,
                "The ground resolution of the images that the model was trained on is unknown: nothing is resized.",
            )
        if mm_per_px is None:
            return 1, "The ground resolution of the photo is unknown: it is not resized."
        factor = mm_per_px / trained_at
        if round(factor * min(height, width)) < MIN_SIDE_PX or factor**2 * height * width > MAX_RESIZED_PIXELS:
            raise CracksError(
                f"At {mm_per_px:g} mm per pixel the photo would be resized {factor:.3g} times to the {trained_at:g} mm "
                "that the model was trained at. Correct --mm-per-px, or map.model_mm_per_px in params.yaml."
            )
        return factor, f"Resized {factor:.3g} times, from {mm_per_px:g} to the model's {trained_at:g} mm per pixel."

    def _scored(
        self, pixels: Pixels, places: list[tuple[int, int]], size: int, on_tiles: OnTiles | None
    ) -> tuple[npt.NDArray[np.float32], Projections]:
        """Return the probability, (n,), and the projection of each tile that begins at (top, left)."""

        def score(first: int) -> Outputs:
            chosen = places[first : first + BATCH_TILES]
            batch = np.stack([pixels[top : top + size, left : left + size] for top, left in chosen])
            outputs = self._model.outputs(batch)
            if on_tiles is not None:
                on_tiles(batch, outputs)
            return outputs

        probabilities, images = [], []
        for start in range(0, len(places), CHUNK_TILES):
            stop = min(start + CHUNK_TILES, len(places))
            batches = list(self._pool.map(score, range(start, stop, BATCH_TILES)))
            probabilities += [batch["probability"] for batch in batches]
            # not in the threads: matrix products bring threads of their own, which would take their cores
            images.append(detector_projection(np.concatenate([batch["features"] for batch in batches])))
        return np.concatenate(probabilities), np.concatenate(images)


def _cells(start: int, size: int, side: int) -> slice:
    """Return the cells under a tile; one that ends less than a cell before the border, by rounding, reaches it."""
    stop = side if side - (start + size) < CELL_PX else start + size
    return slice(start // CELL_PX, -(-stop // CELL_PX))


def _stretched(positions: Starts, last: int) -> Starts:
    """Return where tiles begin in the photo, from where they begin in the resized one; the last of them at `last`."""
    stretched: Starts = np.rint(positions * (last / max(1, positions[-1]))).astype(np.int64)
    return stretched


def _resized(pixels: Pixels, factor: float) -> Pixels:
    height, width, _ = pixels.shape
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
