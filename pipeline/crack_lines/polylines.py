"""Polylines of a skeleton: its branches, joined where they go straight on across a junction."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.crack_lines.crack_line import Points

Skeleton = npt.NDArray[np.bool_]  # (height, width), True on lines one pixel wide
Pixel = tuple[int, int]  # row, column
End = tuple[int, int]  # number of a branch, and 0 (its first point) or -1 (its last)

EIGHT = np.ones((3, 3), np.uint8)  # a pixel and its eight neighbours
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))  # the nearest ones first
DIRECTION_PX = 8  # of the end of a branch, by which its direction is measured
MAX_COSINE = -0.5  # of the angle at which two branches leave a junction: more than 120 degrees is straight on
SMOOTHING_PX = 2.0  # standard deviation, along the line
STEP_PX = 3  # between two points of a line


def polylines(skeleton: Skeleton) -> list[Points]:
    """Return the lines of a skeleton, each (n, 2) with n >= 2, x and y, smoothed."""
    crossings = skeleton & (ndimage.convolve(skeleton.astype(np.uint8), EIGHT, mode="constant") > 3)
    junctions, _ = ndimage.label(crossings, EIGHT)
    centres = [tuple(np.mean(list(pixels), axis=0)) for pixels in _components(junctions)]
    branches: list[Points] = []
    ends_at: dict[int, list[End]] = {}
    for pixels in _components(ndimage.label(skeleton & ~crossings, EIGHT)[0]):
        branch = [(float(row), float(column)) for row, column in _in_order(pixels)]
        for end, (row, column) in ((0, branch[0]), (-1, branch[-1])):
            around = junctions[max(0, int(row) - 1) : int(row) + 2, max(0, int(column) - 1) : int(column) + 2]
            junction = int(around.max()) if len(branch) > 1 or end == 0 else 0
            if junction:
                ends_at.setdefault(junction, []).append((len(branches), end))
                branch.insert(0 if end == 0 else len(branch), centres[junction - 1])
        branches.append(np.array(branch))
    partners: dict[End, End] = {}
    for ends in ends_at.values():
        partners |= _straight_on(branches, ends)
    return [_smoothed(line[:, ::-1]) for line in _chains(branches, partners) if len(line) > 1]


def _components(labels: npt.NDArray[np.int32]) -> list[set[Pixel]]:
    """Return the pixels of each label from 1 on."""
    components: dict[int, set[Pixel]] = {}
    places = np.nonzero(labels)
    for number, row, column in zip(labels[places].tolist(), *(axis.tolist() for axis in places), strict=True):
        components.setdefault(number, set()).add((row, column))
    return [components[number] for number in sorted(components)]


def _in_order(pixels: set[Pixel]) -> list[Pixel]:
    """Return the pixels of a line without junctions from one end to the other; of a loop, from any pixel."""
    near = {
        (row, column): [other for down, right in NEIGHBOURS if (other := (row + down, column + right)) in pixels]
        for row, column in pixels
    }
    path = [min(near, key=lambda pixel: (len(near[pixel]), pixel))]
    seen = set(path)
    while onward := [other for other in near[path[-1]] if other not in seen]:
        path.append(onward[0])
        seen.add(onward[0])
    return path


def _straight_on(branches: list[Points], ends: list[End]) -> dict[End, End]:
    """Return which ends at a junction continue each other, the straightest pairs first."""
    away = {}
    for number, end in ends:
        branch = branches[number] if end == 0 else branches[number][::-1]
        step = branch[min(DIRECTION_PX, len(branch) - 1)] - branch[0]
        away[number, end] = step / max(float(np.hypot(*step)), 1e-9)
    pairs = sorted((float(away[one] @ away[other]), one, other) for one, other in combinations(ends, 2))
    partners: dict[End, End] = {}
    for cosine, one, other in pairs:
        if cosine <= MAX_COSINE and not {one, other} & set(partners):
            partners |= {one: other, other: one}
    return partners


def _chains(branches: list[Points], partners: dict[End, End]) -> list[Points]:
    """Return the branches joined at their partners' ends."""
    chains, used = [], set()
    every_end = [(number, end) for number in range(len(branches)) for end in (0, -1)]
    for start in sorted(every_end, key=lambda end: end in partners):  # free ends first; what remains are loops
        parts, entered = [], start
        while entered[0] not in used:
            number, end = entered
            used.add(number)
            parts.append(branches[number] if end == 0 else branches[number][::-1])
            left = (number, -1 - end)
            if left not in partners:
                break
            entered = partners[left]
        if parts:
            chains.append(np.concatenate(parts))
    return chains


def _smoothed(line: Points) -> Points:
    """Return a line without the steps of its pixels; its ends stay."""
    smooth = ndimage.gaussian_filter1d(line, SMOOTHING_PX, axis=0, mode="nearest")
    smooth[[0, -1]] = line[[0, -1]]
    chosen = np.append(np.arange(0, len(line) - 1, STEP_PX), len(line) - 1)
    return np.asarray(smooth[chosen])
