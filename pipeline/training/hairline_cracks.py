"""Cracks traced from close-ups and drawn again as hairlines.

A crack that is shrunken with its surroundings (mosaics.py) gets thin, but short as well: it ends at the seam
of its cell. On another structure cracks are thin and long. So the line along which a crack of a close-up runs is drawn
across sound concrete, a pixel or two wide.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import Images, Pixels

Folds = npt.NDArray[np.int64]  # (n,), 0..n_folds-1
GreyLevels = npt.NDArray[np.float32]  # (height, width, 3), 0..255, but not yet cut off there
Line = npt.NDArray[np.bool_]  # (size, size), True along a crack, one pixel wide

# A crack is what is darker than the concrete around it.
SURROUNDINGS_SIGMA = 1 / 9  # of the side of the image
GRAIN_SIGMA_PX = 1.5  # smaller dark spots are grain
MAX_BRIGHTNESS = 0.8  # of the surroundings
MAX_SHARE = 0.1  # of the image: of rough concrete, much is darker than that
N_GAPS_PX = 2  # twice as wide gaps in a crack are closed
MIN_SHARE = 0.006  # of the image that a crack takes; smaller ones are stains
MIN_LENGTH = 0.67  # of the side of the image

# How a crack looks from further away, each drawn evenly from its range.
WIDTH_SIGMA_PX = (0.5, 1.6)
DEPTH = (0.15, 0.6)  # share of the light that it takes where it is darkest
FADING = 0.4  # standard deviation of the depth along the line, as a share of it
FADING_RANGE = (0.2, 1.4)


@dataclass(frozen=True)
class CrackLines:
    """The lines along which the cracks of close-ups run.

    Attributes:
        lines: (n, size, size), True along a crack.
        folds: (n,), of the cross-validation.
    """

    lines: npt.NDArray[np.bool_]
    folds: Folds


def extract_crack_line(pixels: Pixels, size_px: int) -> Line:
    """Return the line along which the cracks of a close-up run, (size_px, size_px); empty where none is clear.

    The middle of what is darker than its surroundings, by thinning (Zhang and Suen, A fast parallel algorithm for
    thinning digital patterns, 1984).
    """
    from skimage import filters, morphology  # takes a second, and most trainings do without

    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((size_px, size_px)), np.float32)
    surroundings = filters.gaussian(grey, SURROUNDINGS_SIGMA * size_px)
    brightness = filters.gaussian(grey, GRAIN_SIGMA_PX) / np.maximum(surroundings, 1)
    dark = brightness < min(MAX_BRIGHTNESS, float(np.quantile(brightness, MAX_SHARE)))
    closed = morphology.closing(dark, morphology.disk(N_GAPS_PX))
    cracks = morphology.remove_small_objects(closed, max_size=int(MIN_SHARE * size_px**2))
    line: Line = morphology.skeletonize(cracks)
    return line if line.sum() >= MIN_LENGTH * size_px else np.zeros_like(line)


def extract_crack_lines(images: Images, positions: npt.NDArray[np.int64], folds: Folds, size_px: int) -> CrackLines:
    """Return the lines of the images at `positions` that have a clear one.

    Args:
        images: cracked ones among them.
        positions: of cracked ones, (n,).
        folds: of these, (n,).
        size_px: of the lines.
    """
    lines = np.zeros((len(positions), size_px, size_px), bool)
    for line, position in zip(lines, positions, strict=True):
        line[:] = extract_crack_line(images.pixels(int(position)), size_px)
    is_clear = lines.any(axis=(1, 2))
    return CrackLines(lines[is_clear], folds[is_clear])


def draw_hairline_crack(surface: GreyLevels, line: Line, rng: np.random.Generator) -> GreyLevels:
    """Return the surface with a hairline crack along `line`, (size, size), turned and mirrored at random.

    Args:
        surface: (size, size, 3).
        line: where the crack runs; may be empty.
        rng: decides how the line is turned, and how wide, deep and faded the crack is.
    """
    from skimage import filters

    turned = in_random_orientation(line, rng)
    profile = filters.gaussian(turned.astype(np.float32), rng.uniform(*WIDTH_SIGMA_PX))
    noise = filters.gaussian(rng.normal(size=line.shape), SURROUNDINGS_SIGMA * len(line))
    fading = np.clip(1 + FADING * noise / noise.std(), *FADING_RANGE)
    depth = rng.uniform(*DEPTH) * fading * profile / max(float(profile.max()), 1e-6)
    return np.asarray(surface * (1 - depth[..., None]), np.float32)


def in_random_orientation(picture: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return a square picture in one of its eight orientations."""
    turned = np.rot90(picture, int(rng.integers(4)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned
