"""Finds the lines of cracks in a photo."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from pipeline.crack_lines.crack_line import CrackLine, Points, draw_mask
from pipeline.crack_lines.polylines import EIGHT, polylines
from pipeline.crack_lines.tracer import Likelihood, Tracer
from pipeline.crack_lines.widths import measure_widths
from pipeline.data.images import STRIP_PX, Pixels
from pipeline.data.photos import Mask, filled

MIN_TILES = 64  # in which lines are searched for, the likeliest ones first, even if fewer are called cracked
# Of the photo, with the smallest width of a crack in it, px: the network knows cracks of a few pixels, and finds wide
# ones in a smaller photo, thin ones in a larger.
REDUCTIONS = {3: 4.0, 1: 0.5}
MIN_SIDE_PX = 96  # of a reduced photo
CERTAIN, POSSIBLE = 0.7, 0.5  # limits of the hysteresis: of a pixel that every line has, and of all its pixels
MIN_ELONGATION = 8  # length of a line, in widths
MIN_LENGTH_PX = 40  # in the reduced photo


def find_lines(
    pixels: Pixels,
    searched: npt.NDArray[np.bool_] | None,
    tracer: Tracer,
    check: Callable[[], None] = lambda: None,
    photographed: Mask | None = None,
) -> list[CrackLine]:
    """Return the cracks of an upright photo as lines, the longest first.

    Args:
        pixels: RGB, uint8, (height, width, 3).
        searched: where lines are searched for, (height, width); None: everywhere.
        tracer: says where a crack runs.
        check: called again and again; the search ends with the exception that it raises.
        photographed: where the photo is not transparent, (height, width); None: everywhere.
    """
    if searched is None:
        searched = np.ones(pixels.shape[:2], bool)
    lines: list[CrackLine] = []
    with tracer.reserved(check):
        pixels = filled(pixels, photographed)  # only now: photos that wait would each have a copy
        for reduction, narrowest in REDUCTIONS.items():
            if reduction > 1 and min(pixels.shape[:2]) < MIN_SIDE_PX * reduction:
                continue
            reduced = _reduced(pixels, reduction) if reduction > 1 else pixels
            likelihood = tracer.likelihood(reduced, searched[::reduction, ::reduction], check)
            if lines:  # the edges of a wide crack are no cracks of their own
                likelihood[draw_mask(lines, searched.shape)[::reduction, ::reduction] > 0] = 0
            measure = partial(_measured, reduced, likelihood, reduction, check)
            with ThreadPoolExecutor(1) as pool:  # a line is measured while the next one is followed
                found = list(pool.map(measure, courses(likelihood, MIN_ELONGATION * narrowest, check)))
            least = narrowest * reduction
            lines += [line for line in found if least <= line.median_width_px <= line.length_px / MIN_ELONGATION]
    return sorted(lines, key=lambda line: line.length_px, reverse=True)


def _reduced(pixels: Pixels, reduction: int) -> Pixels:
    """Return the means of squares; strip by strip, as Pillow would copy the whole photo."""
    n_rows = STRIP_PX * reduction
    strips = (pixels[top : top + n_rows] for top in range(0, len(pixels), n_rows))
    return np.concatenate([np.asarray(Image.fromarray(strip).reduce(reduction)) for strip in strips])


def _measured(
    pixels: Pixels, likelihood: Likelihood, reduction: int, check: Callable[[], None], points: Points
) -> CrackLine:
    """Return the line along a course in a reduced photo, as it is in the photo."""
    check()
    rows, columns = np.rint(points[:, ::-1]).astype(int).T
    confidence = float(likelihood[rows, columns].mean())
    widths, low, high = measure_widths(pixels, points)
    enlarged = (points + 0.5) * reduction - 0.5
    return CrackLine(enlarged, widths * reduction, low * reduction, high * reduction, confidence)


def searched_area(tiles: pd.DataFrame, threshold: float, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return where in a photo of (height, width) lines are searched for: in the tiles from the threshold on.

    `tiles` has x, y and size (pixels of the photo) and probability. If fewer reach the threshold, it is the MIN_TILES
    likeliest ones.
    """
    searched = np.zeros(shape, bool)
    ordered = tiles.sort_values("probability", ascending=False, kind="stable")
    n_called = int((tiles["probability"] >= threshold).sum())
    for left, top, size in ordered[["x", "y", "size"]].to_numpy()[: max(MIN_TILES, n_called)].tolist():
        searched[top : top + size, left : left + size] = True
    return searched


def courses(likelihood: Likelihood, min_px: float, check: Callable[[], None]) -> Iterator[Points]:
    """Yield the courses of lines that are at least `min_px` long, (n, 2) each."""
    from skimage import morphology  # the import takes a second

    regions, _ = ndimage.label(likelihood > POSSIBLE, EIGHT)
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
        if max(rows.stop - rows.start, columns.stop - columns.start) < MIN_LENGTH_PX / 2:
            continue
        check()
        region = regions[rows, columns] == number
        if likelihood[rows, columns][region].max() < CERTAIN:
            continue
        skeleton = morphology.skeletonize(np.pad(region, 1))
        if skeleton.sum() >= MIN_LENGTH_PX:
            for points in polylines(skeleton):
                if np.hypot(*np.diff(points, axis=0).T).sum() >= min_px:
                    yield points + np.array([columns.start - 1, rows.start - 1])
