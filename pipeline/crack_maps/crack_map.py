"""Maps the cracks of a photo of any size: cuts it into tiles and scores them with a served model.

Each tile is scored as an image of its own, as in training. Convolving the photo once would save time where tiles
overlap, but changes the scores: the network was trained with padding at the edge of an image, not with the pixels
beyond it (docs/experiments.md has the difference).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pipeline.data.images import Pixels
from pipeline.errors import CracksError
from pipeline.inference.openvino_cpu import N_THREADS, Outputs
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, Projections, Surface, detector_projection
from pipeline.inference.served import ServedModel
from pipeline.params import Map

BATCH_TILES = 4  # the activations of more do not fit into the cache, which is slower
CHUNK_TILES = 1024  # whose features are in memory at once, 25 kB each
CELL_PX = 16  # side of a cell of the raster for areas and the overlay
MIN_SIDE_PX = 32
MAX_RESIZED_PIXELS = 200_000_000  # 600 MB

OnTiles = Callable[[Pixels, Outputs], object]
Starts = npt.NDArray[np.int64]  # of tiles along a side, in pixels
Raster = npt.NDArray[np.float64]  # (rows, columns), a value for each cell of 16 x 16 px


@dataclass(frozen=True)
class CrackMap:
    """Scores of the tiles of a photo.

    `tiles` has a row per tile: row, col, x, y, size (pixels of the upright photo), probability (0..1), label (crack,
    intact or review) and in_distribution (whether the tile is similar to the validation images; None if the model has
    no OOD detector).
    """

    tiles: pd.DataFrame
    width_px: int  # of the upright photo, as height_px
    height_px: int
    scale: str  # a sentence on how the photo was resized, or why it was not
    surface: Surface | None  # the test surface most similar to the photo; None if the model has no OOD detector

    def notes(self) -> list[str]:
        """Return the caveats to show with the map, a sentence each."""
        missed = "It is not recorded how many cracks this model misses."
        if self.surface is not None:
            missed = (
                f"On the test images most similar to this photo ({self.surface.name}), the model missed "
                f"{self.surface.n_missed} of {self.surface.n_cracks} cracks."
            )
        notes = [missed, "An unmarked area may still have cracks.", self.scale]
        if self.tiles["in_distribution"].isna().any():
            notes.append("The model has no out-of-distribution detector.")
        return notes

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
    """Maps photos with a model; thread-safe."""

    def __init__(self, model: ServedModel, params: Map, detector: OutOfDistributionDetector | None = None) -> None:
        """Set the model, how photos are cut, and the model's OOD detector if it has one."""
        self._model = model
        self._params = params
        self._detector = detector
        self._pool = ThreadPoolExecutor(N_THREADS)

    def map(self, pixels: Pixels, mm_per_px: float | None = None, on_tiles: OnTiles | None = None) -> CrackMap:
        """Return the map of an upright photo, RGB, uint8, (height, width, 3), of a known or unknown ground resolution.

        `on_tiles` is called from threads with each batch of tiles, (n, size, size, 3), and its outputs, in any order.
        Raises CracksError if the photo is too small, or would be resized to too few or too many pixels.
        """
        height, width, _ = pixels.shape
        if min(height, width) < MIN_SIDE_PX:
            raise CracksError(f"The photo has {width} x {height} px. A side needs {MIN_SIDE_PX} px or more.")
        factor, scale = self._scale(mm_per_px, height, width)
        resized = pixels if factor == 1 else _resized(pixels, factor)
        tops, lefts, size = grid(resized.shape[:2], self._params.tile_px, self._params.overlap)
        places = [(top, left) for top in tops for left in lefts]
        probabilities, images = self._scored(resized, places, size, on_tiles)
        shown_px = min(round(size / factor), height, width)
        ys, xs = _stretched(tops, height - shown_px), _stretched(lefts, width - shown_px)
        tiles = pd.DataFrame(
            [(row, col, x, y) for row, y in enumerate(ys) for col, x in enumerate(xs)], columns=["row", "col", "x", "y"]
        ).assign(size=shown_px, probability=probabilities)
        verdicts = [self._model.decision.verdict(float(probability)) for probability in probabilities]
        in_distribution = surface = None
        if self._detector is not None:
            in_distribution = self._detector.is_in_distribution(images)
            surface = self._detector.nearest_surface(images)
        tiles["label"] = verdicts if in_distribution is None else np.where(in_distribution, verdicts, "review")
        tiles["in_distribution"] = in_distribution
        return CrackMap(tiles, width, height, scale, surface)

    def _scale(self, mm_per_px: float | None, height: int, width: int) -> tuple[float, str]:
        """Return the factor by which a photo is resized before it is cut, and a sentence about it."""
        trained_at = self._params.model_mm_per_px
        if trained_at is None:
            unknown = "The ground resolution of the images that the model was trained on is unknown"
            return 1, f"{unknown}: nothing is resized."
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
        """Return the probability, (n,), and the projection of each tile; `places` are (top, left)."""

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
            # not in the pool: matrix products start their own threads, which would compete for the cores
            images.append(detector_projection(np.concatenate([batch["features"] for batch in batches])))
        return np.concatenate(probabilities), np.concatenate(images)


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


def _cells(start: int, size: int, side: int) -> slice:
    """Return the cells under a tile; a tile that ends less than a cell before the border (by rounding) reaches it."""
    stop = side if side - (start + size) < CELL_PX else start + size
    return slice(start // CELL_PX, -(-stop // CELL_PX))


def _stretched(positions: Starts, last: int) -> Starts:
    """Return the starts of tiles in the photo, from those in the resized photo; the last start is `last`."""
    stretched: Starts = np.rint(positions * (last / max(1, positions[-1]))).astype(np.int64)
    return stretched


def _resized(pixels: Pixels, factor: float) -> Pixels:
    height, width, _ = pixels.shape
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
