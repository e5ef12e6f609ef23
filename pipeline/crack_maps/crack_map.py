"""Maps the cracks of a photo of any size: scores its tiles with a served model, and finds the lines of its cracks.

Each tile is scored as an image of its own, as in training. Convolving the photo once would save time where tiles
overlap, but changes the scores: the network was trained with padding at the edge of an image, not with the pixels
beyond it (docs/experiments.md has the difference).
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pipeline.crack_lines.crack_line import CrackLine, draw_mask
from pipeline.crack_lines.find_lines import find_lines, searched_area
from pipeline.crack_lines.tracer import Tracer, load_tracer
from pipeline.crack_maps.crack_properties import CrackProperties, properties_of
from pipeline.crack_maps.tiles import grid, stretched
from pipeline.data.images import Pixels
from pipeline.data.photos import Mask
from pipeline.errors import CracksError
from pipeline.inference.openvino_cpu import N_THREADS, Outputs
from pipeline.inference.out_of_distribution import missed_cracks
from pipeline.inference.served import UNLIKE, UNSURE, ServedModel
from pipeline.params import Map

BATCH_TILES = 4  # the activations of more do not fit into the cache, which is slower
CELL_PX = 16  # side of a cell, in which areas are measured
MIN_SIDE_PX = 32
MAX_RESIZED_PIXELS = 200_000_000  # 600 MB
NO_PROOF = (
    "Crack lines are searched for in the likeliest tiles, and hairline cracks are missed: no line is no proof that "
    "there is no crack."
)
MIN_LINE = 1 / 8  # of the side of a tile: pixels of crack lines in a tile through which one runs
REVIEW_SHARE = 0.15  # of a photo's tiles that are for review at most, if the model does not record its budget
MIN_REVIEW_TILES = 20  # that may be for review, however few tiles there are

TileLabel = Literal["crack", "intact", "review", "undecided"]
OnTiles = Callable[[Pixels, Outputs, float], object]


@dataclass(frozen=True)
class CrackMap:
    """Scores of the tiles of a photo, and the lines of its cracks.

    `tiles` has a row per tile: row, col, x, y, size (pixels of the upright photo), probability (0..1), label (crack,
    intact, review or undecided), reason (why it is for review or undecided), in_distribution (whether the tile is
    similar to the validation images; None if the model has no OOD detector) and has_line (whether a crack line runs
    through it). A tile is undecided if the model is unsure and enough tiles that are likelier cracks are for review
    already. Tiles without photo are left out.
    """

    tiles: pd.DataFrame
    width_px: int  # of the upright photo, as height_px
    height_px: int
    scale: str  # a sentence on how the photo was resized, or why it was not
    missed: list[str]  # what is known of the cracks that the model misses, a sentence each
    photographed: npt.NDArray[np.float64]  # (rows, columns), share of each cell that is not transparent, 0..1
    correction: dict[str, float]  # of the probabilities, as `Decision.correction`
    lines: list[CrackLine]
    cracks: list[CrackProperties]  # of each line
    mask: npt.NDArray[np.uint8]  # of the lines, as `draw_mask`

    def notes(self) -> list[str]:
        """Return the caveats to show with the map, a sentence each, the most important ones first."""
        notes = [self.missed[0], "An unmarked area may still have cracks.", NO_PROOF, *self.missed[1:]]
        n_tiles, labels = len(self.tiles), self.tiles["label"].value_counts()
        n_unlike = int((self.tiles["reason"] == UNLIKE).sum())
        if n_unlike:
            notes.append(
                f"{n_unlike:,} of {n_tiles:,} tiles are unlike the training images: the model cannot judge them."
            )
        if n_undecided := int(labels.get("undecided", 0)):
            notes.append(
                f"{n_undecided:,} of {n_tiles:,} tiles are undecided: the model is unsure of them, as of the tiles to "
                "review, which are likelier cracks."
            )
        if self.photographed.min() < 1:
            share = 100 * (1 - self.photographed.mean())
            notes.append(f"{share:.1f} % of the picture is transparent: tiles without photo are left out.")
        if self.tiles["in_distribution"].isna().any():
            notes.append("The model has no out-of-distribution detector.")
        if self.correction:
            assumed, stated = (100 * self.correction[name] for name in ("assumed_prevalence", "prevalence"))
            notes.append(
                f"Probabilities are corrected for {stated:.4g} % of the tiles cracked, as stated; by itself the model "
                f"assumes {assumed:.3g} %."
            )
        return [*notes, self.scale]

    def share_of_area(self, label: TileLabel) -> float:
        """Return the share of the photographed area that lies under a tile of this label, 0..1."""
        return float(np.average(self.covered((self.tiles["label"] == label).to_numpy()), weights=self.photographed))

    def covered(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which cells of 16 x 16 px lie under one of the chosen tiles, (n,)."""
        covered = np.zeros_like(self.photographed, bool)
        for top, left, size in self.tiles.loc[chosen, ["y", "x", "size"]].to_numpy().tolist():
            covered[_cells(top, size, self.height_px), _cells(left, size, self.width_px)] = True
        return covered


class CrackMapper:
    """Maps photos with a model; thread-safe."""

    def __init__(self, model: ServedModel, params: Map, tracer: Tracer | None = None) -> None:
        """Set the model, how photos are cut, and what traces cracks; None: the tracer that ships."""
        self._model = model
        self._params = params
        self._pool = ThreadPoolExecutor(N_THREADS)
        self._tracer = tracer or load_tracer()

    def map(
        self,
        pixels: Pixels,
        mm_per_px: float | None = None,
        on_tiles: OnTiles | None = None,
        photographed: Mask | None = None,
        prevalence: float | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> CrackMap:
        """Return the map of an upright photo.

        Args:
            pixels: RGB, uint8, (height, width, 3).
            mm_per_px: ground resolution of the photo; None if unknown.
            on_tiles: called from threads with each batch of tiles, (n, size, size, 3), its outputs, and its share of
                all tiles, in any order.
            photographed: where the photo is not transparent, (height, width); None: everywhere.
            prevalence: share of cracked tiles that a person states, above 0 and below 1; None: not known.
            check: called again and again while lines are searched for; the map ends with the exception that it raises.

        Raises:
            CracksError: the photo is too small or wholly transparent, or would become too small or too large; or it is
                not recorded which prevalence the model assumes.
        """
        height, width, _ = pixels.shape
        if min(height, width) < MIN_SIDE_PX:
            raise CracksError(f"The photo has {width} x {height} px. A side needs {MIN_SIDE_PX} px or more.")
        if photographed is not None and not photographed.any():
            raise CracksError("The picture is transparent everywhere: it shows nothing.")
        factor, scale = self._scale(mm_per_px, height, width)
        resized = pixels
        if factor != 1:
            shape = round(width * factor), round(height * factor)
            resized = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC))
        tops, lefts, size = grid(resized.shape[:2], self._params.tile_px, self._params.overlap)
        shown_px = min(round(size / factor), height, width)
        ys, xs = stretched(tops, height - shown_px), stretched(lefts, width - shown_px)
        tiles = pd.DataFrame(
            [
                (row, col, x, y)
                for row, y in enumerate(ys)
                for col, x in enumerate(xs)
                if photographed is None or photographed[y : y + shown_px, x : x + shown_px].any()
            ],
            columns=["row", "col", "x", "y"],
        ).assign(size=shown_px)
        places = [(tops[row], lefts[col]) for row, col in tiles[["row", "col"]].to_numpy()]
        tiles = tiles.join(self._scored(resized, places, size, on_tiles, prevalence))
        del resized  # which may be larger than the photo
        tiles = with_review_budget(tiles, self._model.decision.review_budget)
        as_scored = tiles.assign(probability=tiles.pop("uncorrected"))  # what a person states moves no line
        searched = searched_area(as_scored, self._model.decision.threshold, (height, width))
        lines = find_lines(pixels, searched, self._tracer, check, photographed)
        cracks, mask = properties_of(lines, mm_per_px, self._params.width_classes), draw_mask(lines, (height, width))
        cut = (mask[y : y + shown_px, x : x + shown_px] for y, x in tiles[["y", "x"]].to_numpy())
        tiles = tiles.assign(has_line=[np.count_nonzero(part) >= MIN_LINE * shown_px for part in cut])
        missed, photo = missed_cracks(self._model.detector), _share_of_cells(photographed, height, width)
        correction = self._model.decision.correction(prevalence)
        return CrackMap(tiles, width, height, scale, missed, photo, correction, lines, cracks, mask)

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
        self,
        pixels: Pixels,
        places: list[tuple[int, int]],
        size: int,
        on_tiles: OnTiles | None,
        prevalence: float | None,
    ) -> pd.DataFrame:
        """Return the `Labels` of the tiles and their uncorrected probabilities; `places` are (top, left)."""

        def score(first: int) -> pd.DataFrame:
            chosen = places[first : first + BATCH_TILES]
            batch = np.stack([pixels[top : top + size, left : left + size] for top, left in chosen])
            outputs = self._model.outputs(batch)
            if on_tiles is not None:
                on_tiles(batch, outputs, len(chosen) / len(places))
            labels = self._model.labels(outputs, prevalence)
            return pd.DataFrame(labels._asdict()).assign(uncorrected=outputs["probability"])

        return pd.concat(self._pool.map(score, range(0, len(places), BATCH_TILES)), ignore_index=True)


def with_review_budget(tiles: pd.DataFrame, share: float | None) -> pd.DataFrame:
    """Return the tiles of a photo with a limited number of them for review because the model is unsure.

    The limit is this share of the tiles, 15 % if the model records none, or 20 if that is more; nobody would look at
    all of more. The likeliest cracks stay; the others become `undecided`.
    """
    budget = max(MIN_REVIEW_TILES, math.floor((REVIEW_SHARE if share is None else share) * len(tiles)))
    unsure = tiles[tiles["reason"] == UNSURE].sort_values("probability", ascending=False, kind="stable")
    return tiles.assign(label=tiles["label"].mask(tiles.index.isin(unsure.index[budget:]), "undecided"))


def _cells(start: int, size: int, side: int) -> slice:
    """Return the cells under a tile; a tile that ends less than a cell before the border (by rounding) reaches it."""
    stop = side if side - (start + size) < CELL_PX else start + size
    return slice(start // CELL_PX, -(-stop // CELL_PX))


def _share_of_cells(photographed: Mask | None, height_px: int, width_px: int) -> npt.NDArray[np.float64]:
    """Return the share of each cell that is photographed; the part of a cell outside the photo counts as its rest."""
    rows, columns = -(-height_px // CELL_PX), -(-width_px // CELL_PX)
    if photographed is None:
        return np.ones((rows, columns))
    padding = (0, rows * CELL_PX - height_px), (0, columns * CELL_PX - width_px)
    padded = np.pad(photographed, padding, mode="edge")
    return np.asarray(padded.reshape(rows, CELL_PX, columns, CELL_PX).mean(axis=(1, 3)))
