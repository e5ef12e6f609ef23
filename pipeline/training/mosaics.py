"""Mosaics: training images composed of shrunken ones, in which cracks are thin and surrounded by intact concrete.

A mosaic of k x k close-ups, some of them cracked, imitates photos taken from further away. In a hairline mosaic all
cells are intact, and a synthetic crack is drawn across them (pipeline/training/hairline_cracks.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from pipeline.data.images import Images, LabelledImages, Pixels, Sizes
from pipeline.errors import TooFewImagesError
from pipeline.models.metrics import Labels
from pipeline.params import MosaicSet
from pipeline.training.hairline_cracks import (
    CrackLines,
    Folds,
    GreyLevels,
    draw_hairline_crack,
    extract_crack_lines,
    in_random_orientation,
)

MAX_SOURCES = 6000  # shrunken close-ups in memory, 40 kB each at 112 px
MAX_CRACK_LINES = 1000  # 50 kB each at 224 px; more bring no improvement
SHARE_MIRRORED = 0.5  # of the surfaces of hairline mosaics: a single cell, extended by mirroring

# Variation between cameras, weather and distances, each value drawn uniformly from its range.
CONTRAST = (0.35, 1.1)  # mostly below 1: wide cracks in close-ups have more contrast than hairline cracks
BRIGHTNESS_SHIFT = (-25.0, 25.0)  # grey levels
COLOUR_GAIN = (0.92, 1.08)
BLUR_SIGMA_PX = (0.3, 1.2)
NOISE_STD = (1.0, 6.0)  # grey levels
SHARE_BLURRED = 0.5
SHARE_NOISY = 0.5


def shrink(images: Images, positions: npt.NDArray[np.int64], size_px: int) -> Pixels:
    """Return the images at `positions` as small squares, by area averaging: uint8, (n, size_px, size_px, 3)."""
    cells = np.empty((len(positions), size_px, size_px, 3), np.uint8)
    for cell, position in zip(cells, positions, strict=True):
        image = Image.fromarray(images.pixels(int(position)))
        cell[:] = np.asarray(image.resize((size_px, size_px), Image.Resampling.BOX))
    return cells


@dataclass(frozen=True)
class Sources:
    """Close-ups that mosaics are composed of."""

    cells: Pixels  # (n, size, size, 3)
    labels: Labels
    folds: Folds  # all cells of a mosaic, and the crack drawn on it, are of one fold
    crack_lines: CrackLines | None = None  # to draw across intact cells; None: cracked mosaics have some cracked cells


class Mosaics:
    """Random mosaics, alternately cracked and intact; each is composed on demand, reproducibly from the seed."""

    def __init__(
        self, sources: Sources, cells_a_side: Sequence[int], n_images: int, size_px: int, *, seed: int
    ) -> None:
        """Plan `n_images` mosaics for each of `cells_a_side`, of `size_px` x `size_px`.

        Raises `TooFewImagesError` if the sources lack a label or a crack line in some fold.
        """
        n = n_images * len(cells_a_side)
        self._sources, self._size_px, self._seed = sources, size_px, seed
        self._sides = np.repeat(cells_a_side, n_images)
        self.sizes: Sizes = np.full((n, 2), size_px, np.int64)
        self.labels: Labels = np.arange(n) % 2 == 0
        folds = np.unique(sources.folds)
        self.folds: Folds = folds[np.arange(n) // 2 % len(folds)]
        self._choice = {
            (int(fold), label): np.flatnonzero((sources.folds == fold) & (sources.labels == label))
            for fold in folds
            for label in (True, False)
        }
        for (_, label), choice in self._choice.items():
            if not len(choice):
                raise TooFewImagesError(
                    f"Mosaics are composed of cracked and intact images, but there are too few "
                    f"{'cracked' if label else 'intact'} ones ({int((sources.labels == label).sum())} of "
                    f"{len(sources.labels)}). Name more data sets under mosaics.of, or leave mosaics out."
                )
        if sources.crack_lines and set(folds) - set(sources.crack_lines.folds):
            raise TooFewImagesError(
                f"Only {len(sources.crack_lines.folds)} cracks in the images are clear enough to trace, too few for "
                "the cross-validation. Name more data sets under hairline_mosaics.of, or leave hairline_mosaics out."
            )

    def pixels(self, position: int) -> Pixels:
        """Return the mosaic at `position`: RGB, uint8, (size_px, size_px, 3)."""
        rng = np.random.default_rng([self._seed, position])
        side, cracked, fold = int(self._sides[position]), bool(self.labels[position]), int(self.folds[position])
        if drawn := self._sources.crack_lines:
            surface = self._intact_surface(fold, side, rng)
            if cracked:
                line = drawn.lines[rng.choice(np.flatnonzero(drawn.folds == fold))]
                surface = draw_hairline_crack(surface, line, rng)
            return vary(surface, rng)
        n_cracked = int(rng.choice([1, 2, side])) if cracked else 0
        is_cracked = rng.permutation(side * side) < n_cracked
        chosen = [rng.choice(self._choice[fold, bool(crack)]) for crack in is_cracked]
        return vary(compose(self._sources.cells[chosen], side, self._size_px, rng), rng)

    def _intact_surface(self, fold: int, side: int, rng: np.random.Generator) -> GreyLevels:
        """Return intact cells with visible seams, which are not cracks, or one cell continued by its mirror images."""
        if rng.random() < SHARE_MIRRORED:
            cell = self._sources.cells[rng.choice(self._choice[fold, False])]
            return extend_by_mirroring(cell, side, self._size_px, rng)
        cells = self._sources.cells[rng.choice(self._choice[fold, False], side * side)]
        return compose(cells, side, self._size_px, rng, with_seams=True)


def build_mosaics(
    train: LabelledImages,
    chosen: npt.NDArray[np.int64],
    folds: Folds,
    params: MosaicSet,
    size_px: int,
    seed: int,
    *,
    draw_hairlines: bool = False,
) -> Mosaics:
    """Return the mosaics that `params` describes, of the training images at `chosen`, (n,), with their folds, (n,)."""
    rng = np.random.default_rng(seed)
    if len(chosen) > MAX_SOURCES:
        some = np.sort(rng.choice(len(chosen), MAX_SOURCES, replace=False))
        chosen, folds = chosen[some], folds[some]
    labels, crack_lines = train.labels[chosen], None
    if draw_hairlines:
        few = rng.permutation(np.flatnonzero(labels))[:MAX_CRACK_LINES]
        crack_lines = extract_crack_lines(train, chosen[few], folds[few], size_px)
    sources = Sources(shrink(train, chosen, size_px // min(params.cells_a_side)), labels, folds, crack_lines)
    return Mosaics(sources, params.cells_a_side, params.n_images, size_px, seed=seed)


def compose(
    cells: Pixels, side: int, size_px: int, rng: np.random.Generator, *, with_seams: bool = False
) -> GreyLevels:
    """Compose cells, uint8, (side * side, height, width, 3), each randomly rotated and mirrored, to one surface.

    Each cell is shifted to the median colour of the first, so that no seams show between intact cells; `with_seams`
    they keep their own colours. Returns (size_px, size_px, 3); values can lie outside 0..255.
    """
    edges = np.linspace(0, size_px, side + 1).astype(int)
    mosaic = np.empty((size_px, size_px, 3), np.float32)
    colour = np.median(cells[0], axis=(0, 1))  # (3,)
    places = [(rows, columns) for rows in pairwise(edges) for columns in pairwise(edges)]
    for cell, ((top, bottom), (left, right)) in zip(cells, places, strict=True):
        turned = in_random_orientation(cell, rng)
        size = (int(right - left), int(bottom - top))
        shrunken = np.asarray(Image.fromarray(turned).resize(size, Image.Resampling.BOX), np.float32)
        mosaic[top:bottom, left:right] = (
            shrunken if with_seams else shrunken - np.median(shrunken, axis=(0, 1)) + colour
        )
    return mosaic


def extend_by_mirroring(cell: Pixels, side: int, size_px: int, rng: np.random.Generator) -> GreyLevels:
    """Return a randomly oriented cell, continued at its edges by its mirror images, (size_px, size_px, 3).

    The cell, uint8, (height, width, 3), is shrunken so that `side` of them fit beside each other.
    """
    cell_px = -(-size_px // side)
    turned = Image.fromarray(in_random_orientation(cell, rng))
    shrunken = np.asarray(turned.resize((cell_px, cell_px), Image.Resampling.BOX), np.float32)
    rest = (0, size_px - cell_px)
    return np.pad(shrunken, (rest, rest, (0, 0)), mode="symmetric")


def vary(image: GreyLevels, rng: np.random.Generator) -> Pixels:
    """Return the image with random contrast, brightness, colour, blur and noise: uint8, the same shape."""
    mean = image.mean()
    varied = (image - mean) * rng.uniform(*CONTRAST) + mean + rng.uniform(*BRIGHTNESS_SHIFT)
    varied *= rng.uniform(*COLOUR_GAIN, size=3)
    if rng.random() < SHARE_BLURRED:
        blur = ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA_PX))
        varied = np.asarray(Image.fromarray(_to_pixels(varied)).filter(blur), np.float32)
    if rng.random() < SHARE_NOISY:
        grain = rng.normal(0, rng.uniform(*NOISE_STD), varied.shape[:2])  # the same for all channels
        varied = varied + grain[..., None]
    return _to_pixels(varied)


def _to_pixels(image: GreyLevels) -> Pixels:
    return np.clip(image, 0, 255).astype(np.uint8)
