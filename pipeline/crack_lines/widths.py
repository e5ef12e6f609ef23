"""Measures the width of a crack from the brightness across it, to a part of a pixel.

Across a crack, the surface is darker over its width, with edges as blurred as the photo is. At each point of a line,
the profile is compared with all widths, blurs and shifts of a grid. The blur is that of the photo: one for a line.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.special import erf

from pipeline.crack_lines.crack_line import Points, Widths, normals
from pipeline.data.images import Pixels

Profiles = npt.NDArray[np.float32]  # (n_points, n_samples), darkness relative to brightness
Grid = npt.NDArray[np.float32]  # (n_shifts * n_blurs, n_samples, n_widths), unit vectors

HALF_LENGTHS_PX = (22.0, 9.0)  # of a profile; the second is for thin cracks, where it has less of others
THIN_PX = 5.0
SAMPLE_PX = 0.5
POINTS_AT_ONCE = 64  # of more, NumPy computes a matrix product in threads, which slow down the search for lines
AVERAGED_POINTS = 3  # of which the profiles are averaged; of more, peaks of the width are lost
# How far from 0.5 are the quantiles of the widths between which the median is, times the square root of the number of
# points. For a sample it would be 0.82 at 90 %; here all of the line is measured, but averaged along it.
MEDIAN_RANGE = 0.3
WIDTHS_PX = np.exp(np.linspace(np.log(0.5), np.log(32), 42))
BLURS_PX = np.array([0.35, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.4])
SHIFTS_PX = np.arange(-3.0, 4.0)

# Of thin cracks, width and blur look alike. Of drawn cracks with these fitted widths, the 5 %, 50 % and 95 % quantiles
# of the true width, px; `python -m benchmarks.line_widths` prints them. The first ones are 0: thinner ones occur.
CALIBRATION = np.array(
    [
        (0.5, 0.00, 0.60, 1.25),
        (1.2, 0.00, 0.90, 2.00),
        (1.65, 0.00, 1.15, 2.15),
        (1.95, 0.00, 1.60, 2.40),
        (2.3, 0.00, 2.10, 2.80),
        (2.75, 0.70, 2.70, 3.25),
        (3.2, 2.00, 3.19, 3.55),
        (3.7, 3.55, 3.71, 4.05),
        (5.0, 4.93, 4.98, 5.07),
        (8.0, 7.93, 7.98, 8.07),
        (40.0, 39.63, 39.90, 40.18),
    ]
)


def profiles_across(grey: npt.NDArray[np.float32], points: Points, half_px: float) -> Profiles:
    """Return the brightness across a line at each of its points, averaged over a few of them."""
    along = ndimage.uniform_filter1d(np.gradient(points, axis=0), AVERAGED_POINTS, axis=0, mode="nearest")
    offsets = np.arange(-half_px, half_px + SAMPLE_PX / 2, SAMPLE_PX)
    places = points[:, None] + offsets[:, None] * normals(along)[:, None]  # (n_points, n_samples, 2)
    values = ndimage.map_coordinates(grey, [places[..., 1], places[..., 0]], order=1, mode="nearest")
    return np.asarray(ndimage.uniform_filter1d(values, AVERAGED_POINTS, axis=0, mode="nearest"), np.float32)


@lru_cache
def _grid(half_px: float) -> Grid:
    """Return the slopes of all profiles."""
    offsets = np.arange(-half_px, half_px + SAMPLE_PX / 2, SAMPLE_PX)
    shifts, blurs, widths = SHIFTS_PX[:, None, None, None], BLURS_PX[:, None, None], WIDTHS_PX[:, None]
    first, last = (erf((offsets - shifts + side * widths / 2) / (np.sqrt(2) * blurs)) for side in (1, -1))
    slopes = _slopes((first - last).reshape(-1, len(offsets)))
    norms = np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 0.01)  # 0 if it is wider than the profile
    units = np.asarray(slopes / norms, np.float32).reshape(-1, len(WIDTHS_PX), slopes.shape[1])
    return np.ascontiguousarray(units.swapaxes(1, 2))


def _slopes(profiles: Profiles) -> Profiles:
    """Return the differences along profiles, without their mean.

    The brightness of concrete varies the more, the further apart two points are; its differences vary alike everywhere.
    """
    slopes = np.diff(profiles, axis=1)
    return np.asarray(slopes - slopes.mean(axis=1, keepdims=True), np.float32)


def measure_widths(pixels: Pixels, points: Points) -> tuple[Widths, float, float]:
    """Return the width of a crack at each point of its line, and the 90 % interval of their median, px.

    Args:
        pixels: the photo, RGB, uint8, (height, width, 3).
        points: (n, 2), x and y.
    """
    first = np.maximum(points.min(axis=0) - HALF_LENGTHS_PX[0], 0).astype(int)
    last = (points.max(axis=0) + HALF_LENGTHS_PX[0] + 2).astype(int)
    grey = pixels[first[1] : last[1], first[0] : last[0]].mean(axis=2, dtype=np.float32)
    wide, thin = HALF_LENGTHS_PX
    widths = _fitted(profiles_across(grey, points - first, wide), wide)
    if np.median(widths) < THIN_PX:
        widths = _fitted(profiles_across(grey, points - first, thin), thin)
    fitted, low, middle, high = CALIBRATION.T
    lower, upper = np.quantile(widths, 0.5 + MEDIAN_RANGE / np.sqrt(len(widths)) * np.array([-1, 1]))
    interval = float(np.interp(lower, fitted, low)), float(np.interp(upper, fitted, high))
    return np.asarray(np.interp(widths, fitted, middle)), *interval


def _fitted(profiles: Profiles, half_px: float) -> Widths:
    # The part of a profile that a dark line explains: the square of its product with the unit vector.
    slopes, grid = _slopes(profiles), _grid(half_px)
    parts = [slopes[first : first + POINTS_AT_ONCE] @ grid for first in range(0, len(slopes), POINTS_AT_ONCE)]
    by_shift = np.concatenate(parts, axis=1).reshape(len(SHIFTS_PX), len(BLURS_PX), -1, len(WIDTHS_PX))
    by_width = np.minimum(by_shift.min(axis=0), 0) ** 2  # a dark line has a negative product
    blur = by_width.max(axis=2).sum(axis=1).argmax()  # that suits the line
    best = by_width[blur]  # (n_points, n_widths)
    peak = np.clip(best.argmax(axis=1), 1, len(WIDTHS_PX) - 2)
    before, at, after = (best[np.arange(len(profiles)), peak + step] for step in (-1, 0, 1))
    part = np.clip(0.5 * (before - after) / np.minimum(before - 2 * at + after, -1e-9), -0.5, 0.5)
    return np.asarray(np.exp(np.interp(peak + part, np.arange(len(WIDTHS_PX)), np.log(WIDTHS_PX))))
