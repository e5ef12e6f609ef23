"""Synthetic hairline cracks: the centre lines of cracks in close-ups, drawn thinly across intact concrete.

They are thin and long; a crack that is shrunken with its surroundings (mosaics.py) ends at the edge of its cell.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import Images, Pixels

Folds = npt.NDArray[np.int64]  # (n,), 0..n_folds-1
GreyLevels = npt.NDArray[np.float32]  # (height, width, 3), 0..255, not yet clipped
Line = npt.NDArray[np.bool_]  # (size, size), True on the centre line of a crack, one pixel wide

# A crack is a region that is darker than the concrete around it.
SURROUNDINGS_SIGMA = 1 / 9  # of the side of the image
GRAIN_SIGMA_PX = 1.5  # smaller dark spots are grain
MAX_BRIGHTNESS = 0.8  # of the surroundings
MAX_SHARE = 0.1  # of the image: much of a rough surface is darker than that
N_GAPS_PX = 2  # gaps in a crack of up to twice this width are closed
MIN_SHARE = 0.006  # of the image that a crack covers; smaller regions are stains
MIN_LENGTH = 0.67  # of the side of the image

# Appearance of a crack from further away, each value drawn uniformly from its range.
WIDTH_SIGMA_PX = (0.5, 1.6)
DEPTH = (0.15, 0.6)  # share by which it darkens the surface where it is darkest
FADING = 0.4  # standard deviation of the depth along the line, as a share of the depth
FADING_RANGE = (0.2, 1.4)


@dataclass(frozen=True)
class CrackLines:
    """Centre lines of the cracks in close-ups."""

    lines: npt.NDArray[np.bool_]  # (n, size, size), True on a centre line
    folds: Folds


def extract_crack_line(pixels: Pixels, size_px: int) -> Line:
    """Return the centre line of the cracks in a close-up, (size_px, size_px); empty if there is no clear crack.

    Regions that are darker than their surroundings are thinned to one pixel (Zhang and Suen 1984).
    """
    from skimage import filters, morphology  # the import takes a second, and most trainings do not need it

    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((size_px, size_px)), np.float32)
    surroundings = filters.gaussian(grey, SURROUNDINGS_SIGMA * size_px)
    brightness = filters.gaussian(grey, GRAIN_SIGMA_PX) / np.maximum(surroundings, 1)
    dark = brightness < min(MAX_BRIGHTNESS, float(np.quantile(brightness, MAX_SHARE)))
    closed = morphology.closing(dark, morphology.disk(N_GAPS_PX))
    cracks = morphology.remove_small_objects(closed, max_size=int(MIN_SHARE * size_px**2))
    line: Line = morphology.skeletonize(cracks)
    return line if line.sum() >= MIN_LENGTH * size_px else np.zeros_like(line)


def extract_crack_lines(images: Images, positions: npt.NDArray[np.int64], folds: Folds, size_px: int) -> CrackLines:
    """Return the lines, (size_px, size_px), of the images at `positions`, (n,), that show a clear crack."""
    lines = np.zeros((len(positions), size_px, size_px), bool)
    for line, position in zip(lines, positions, strict=True):
        line[:] = extract_crack_line(images.pixels(int(position)), size_px)
    is_clear = lines.any(axis=(1, 2))
    return CrackLines(lines[is_clear], folds[is_clear])


def draw_hairline_crack(surface: GreyLevels, line: Line, rng: np.random.Generator) -> GreyLevels:
    """Return the surface, (size, size, 3), with a hairline crack of random width, depth and fading along `line`.

    The line, (size, size), which may be empty, is randomly rotated and mirrored.
    """
    from skimage import filters

    turned = in_random_orientation(line, rng)
    profile = filters.gaussian(turned.astype(np.float32), rng.uniform(*WIDTH_SIGMA_PX))
    noise = filters.gaussian(rng.normal(size=line.shape), SURROUNDINGS_SIGMA * len(line))
    fading = np.clip(1 + FADING * noise / noise.std(), *FADING_RANGE)
    depth = rng.uniform(*DEPTH) * fading * profile / max(float(profile.max()), 1e-6)
    return np.asarray(surface * (1 - depth[..., None]), np.float32)


def in_random_orientation(picture: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return a square picture in a random one of its eight orientations."""
    turned = np.rot90(picture, int(rng.integers(4)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned
