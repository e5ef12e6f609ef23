"""Draws cracks on intact concrete, and what is easily taken for cracks, to train the tracer of crack lines.

A crack meanders, branches and fades. Joints, scratches and the marks of form-work are straight, pores and stains are
no lines, and shadows have one edge.
"""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.crack_lines.crack_line import Points
from pipeline.data.images import Pixels
from pipeline.data.random_shapes import SUPERSAMPLING, rasterise, stroke

Grey = npt.NDArray[np.float32]  # (size, size), 0..255
GreyImage = npt.NDArray[np.uint8]  # (height, width)
Label = npt.NDArray[np.uint8]  # (size, size)
Mask = npt.NDArray[np.bool_]  # (size, size)
Example = tuple[GreyImage, Label]  # a drawn image and its label: 1 on a crack, 0, or IGNORED
Share = npt.NDArray[np.float32]  # (size, size), 0..1 of a pixel that is covered
Random = np.random.Generator

STEP_PX = 4.0  # between the points of a drawn crack
N_OCTAVES = 5  # of displacement of a crack's course
WIDTHS_PX = (0.7, 7.0)  # of a drawn crack, log-uniform
DEPTHS = (0.08, 0.7)  # share by which a crack darkens the surface
MIN_LABEL_PX = 3.0  # width of the label of a crack; a thinner one is hard to hit
MIN_CONTRAST = 1.5  # of a crack 1 px wide, in standard deviations of the grain; a fainter one has no label
NOISE = 6.0  # largest standard deviation of a camera's noise, grey levels
IGNORED = 255  # in labels


def draw_line(points: Points, widths_px: npt.NDArray[np.float64], size_px: int) -> Share:
    """Return the share of each pixel, (size_px, size_px), that a line covers; `widths_px`, (n,), are at its points."""
    first_subpixel = 0.5 - 0.5 / SUPERSAMPLING  # here, (0, 0) is the centre of the first pixel
    return np.asarray(rasterise(size_px, stroke(points + first_subpixel, widths_px)), np.float32)


def crack_course(start: Points, angle: float, length_px: float, roughness: float, rng: Random) -> Points:
    """Return the course of a crack, (n, 2): straight on the whole, displaced at every scale."""
    n_points = max(4, round(length_px / STEP_PX))
    offsets, decay = np.zeros(n_points), rng.uniform(1.5, 2.1)
    for octave in range(N_OCTAVES):
        n_knots = 2 + 2**octave * max(1, round(length_px / 128))
        spread = roughness * length_px / max(1.0, length_px / 128) / decay**octave
        knots = np.linspace(0, n_points - 1, n_knots)
        offsets += np.interp(np.arange(n_points), knots, rng.normal(0, spread, n_knots))
    offsets += rng.normal(0, 0.25, n_points) - offsets[0]
    along = np.arange(n_points) * STEP_PX
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(start + np.stack([along, offsets], axis=1) @ turn)


def smooth_noise(shape: int | tuple[int, int], sigma: float, rng: Random) -> npt.NDArray[np.float32]:
    """Return noise of standard deviation 1 that is smooth over `sigma` pixels."""
    step = max(1, int(sigma / 2))  # smooth noise is drawn coarsely
    coarse = [-(-side // step) + 1 for side in np.atleast_1d(shape)]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse, np.float32), sigma / step, mode="wrap")
    if step > 1:
        noise = ndimage.zoom(noise, step, order=1)
    noise = noise[tuple(slice(side) for side in np.atleast_1d(shape))]
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def add_crack(surface: Grey, label: Label, rng: Random) -> Grey:
    """Return the surface with a crack, often with branches; `label` is changed to 1 on it, IGNORED where it fades."""
    size = len(surface)
    width = float(np.exp(rng.uniform(*np.log(WIDTHS_PX))))
    depth = rng.uniform(*DEPTHS) if width > 1.5 else rng.uniform(2 * DEPTHS[0], DEPTHS[1])
    angle, roughness = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.12)
    middle = rng.uniform(0.15, 0.85, 2) * size
    length = size * (rng.uniform(0.3, 0.8) if rng.random() < 0.3 else 2.0)
    start = middle - 0.5 * length * np.array([np.cos(angle), np.sin(angle)])
    courses = [(crack_course(start, angle, length, roughness, rng), width)]
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        inside = [point for point in courses[0][0] if point.min() >= 0 and point.max() < size]
        if inside:
            towards = angle + rng.choice([-1, 1]) * rng.uniform(0.4, 1.5)
            reach = size * rng.uniform(0.1, 0.8)
            branch = crack_course(inside[rng.integers(len(inside))], towards, reach, roughness, rng)
            courses.append((branch, width * rng.uniform(0.4, 1.0)))
    cover, wide = np.zeros_like(surface), np.zeros_like(surface)
    for course, of_course in courses:
        widths = of_course * np.exp(rng.uniform(0, 0.5) * smooth_noise(len(course), 3, rng))
        cover = np.maximum(cover, draw_line(course, widths, size))
        wide = np.maximum(wide, draw_line(course, np.maximum(widths, MIN_LABEL_PX), size))
    fading = np.clip(1 + rng.uniform(0, 0.7) * smooth_noise(surface.shape, size / 12, rng), 0, 1.5)
    blurred = ndimage.gaussian_filter(cover, rng.uniform(0.3, 0.9))
    darkened = np.minimum(depth * fading * blurred, 0.95)
    rim = rng.uniform(0, 0.15) * np.roll(blurred, rng.integers(-3, 4, 2), (0, 1)) if rng.random() < 0.25 else 0.0
    _mark(label, wide > 0.5, darkened * surface, surface, width)
    return np.asarray(surface * (1 - darkened) * (1 + rim * (1 - darkened)), np.float32)


def _mark(label: Label, is_crack: Mask, depth: Grey, surface: Grey, width_px: float) -> None:
    """Label a crack 1, and IGNORED where it is too faint on this surface: `depth` is by how many grey levels."""
    grain = float(np.hypot((surface - ndimage.gaussian_filter(surface, 4)).std(), NOISE / 2))
    contrast = ndimage.maximum_filter(depth, 5) * np.sqrt(np.clip(width_px, 0.5, 5))
    label[is_crack & (label != 1)] = IGNORED
    label[is_crack & (contrast >= MIN_CONTRAST * grain)] = 1


def add_joint(surface: Grey, rng: Random) -> Grey:
    """Return the surface with straight lines: a joint, a scratch, or the parallel marks of planks."""
    size = len(surface)
    angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.06) if rng.random() < 0.75 else rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    n_lines = int(rng.integers(3, 12)) if rng.random() < 0.25 else int(rng.integers(1, 3))
    for _ in range(n_lines):
        length = size * (2.0 if rng.random() < 0.7 else rng.uniform(0.15, 0.7))
        places = np.linspace(-0.5, 0.5, 40)[:, None] * length * along + rng.uniform(0, size, 2)
        width = np.exp(rng.uniform(*np.log([0.8, 10.0 if n_lines < 3 else 4.0])))
        places += rng.normal(0, rng.choice([0.0, 0.15, 0.4]), (40, 2))
        cover = draw_line(places, np.full(40, width) * np.exp(rng.uniform(0, 0.3) * smooth_noise(40, 1, rng)), size)
        cover = ndimage.gaussian_filter(cover, np.exp(rng.uniform(*np.log([0.4, 2.5]))))
        fading = np.clip(1 + rng.uniform(0, 0.8) * smooth_noise(surface.shape, size / 16, rng), 0, 1.6)
        depth = rng.uniform(0.06, 0.9 if n_lines < 3 else 0.3) * (-0.4 if rng.random() < 0.2 else 1.0)
        surface = surface * (1 - np.clip(depth * fading, -0.6, 0.95) * cover)
        if rng.random() < 0.3:  # the other side of the joint is brighter or darker
            surface = surface * (1 + rng.normal(0, 0.1) * np.clip(_side(size, places[20], angle), 0, 1))
    return np.asarray(surface, np.float32)


def add_pores(surface: Grey, rng: Random) -> Grey:
    """Return the surface with pores and holes: dark spots of all sizes."""
    size = len(surface)
    picture = Image.new("L", (size * 4,) * 2)
    draw = ImageDraw.Draw(picture)
    largest = np.exp(rng.uniform(*np.log([3.0, 50.0])))
    n_largest = 120 if largest < 6 else 25 if largest < 15 else 6
    for x, y in rng.uniform(0, size * 4, (int(rng.integers(2, n_largest)), 2)):
        corners = rng.uniform(0.4, 1, 9) * rng.uniform(2, 2 * largest)
        angles, flat = np.linspace(0, 2 * np.pi, 9), rng.uniform(0.3, 1)
        shape = np.stack([x + corners * np.cos(angles), y + flat * corners * np.sin(angles)], axis=1)
        draw.polygon([tuple(corner) for corner in shape], fill=int(rng.integers(60, 256)))
    cover = ndimage.gaussian_filter(np.asarray(picture.reduce(4), np.float32) / 255, rng.uniform(0.4, 1.0))
    return np.asarray(surface * (1 - rng.uniform(0.1, 0.8) * cover), np.float32)


def add_rings(surface: Grey, rng: Random) -> Grey:
    """Return the surface with circles and arcs, as around the holes of form-work ties."""
    size, angles = len(surface), np.linspace(0, 2 * np.pi, 60)
    for _ in range(int(rng.integers(1, 4))):
        arc = angles[: int(rng.integers(15, 60))] + rng.uniform(0, 6)
        radius = np.exp(rng.uniform(*np.log([5.0, 60.0])))
        places = rng.uniform(0, size, 2) + radius * np.stack([np.cos(arc), rng.uniform(0.7, 1) * np.sin(arc)], axis=1)
        widths = np.exp(rng.uniform(*np.log([0.8, 5.0]))) * np.exp(rng.uniform(0, 0.4) * smooth_noise(len(arc), 2, rng))
        cover = ndimage.gaussian_filter(draw_line(places, widths, size), rng.uniform(0.4, 1.2))
        surface = surface * (1 - rng.uniform(0.05, 0.6) * cover)
    return np.asarray(surface, np.float32)


def add_bricks(surface: Grey, label: Label, rng: Random) -> Grey:
    """Return the surface as masonry: rows of bricks of different brightness, with mortar between them.

    Many of them have a crack that follows the mortar in steps; `label` is changed on it as by `add_crack`.
    """
    size = len(surface)
    height, mortar = rng.uniform(16, 80), np.exp(rng.uniform(*np.log([1.5, 9.0])))
    length, offset = height * rng.uniform(1.5, 4), rng.uniform(0, size, 2)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    wave = rng.uniform(0, 1.5) * smooth_noise(surface.shape, rng.uniform(6, 30), rng)
    course, up = np.divmod(rows + offset[0] + wave, height)
    brick, right = np.divmod(columns + offset[1] + wave + course % 2 * length / 2, length)
    tones = rng.normal(1, rng.uniform(0, 0.15), (64, 64))
    shade = tones[(course % 64).astype(int), (brick % 64).astype(int)]
    between = np.maximum(np.minimum(up, height - up), 0) < mortar / 2
    between |= np.maximum(np.minimum(right, length - right), 0) < mortar / 2
    cover = ndimage.gaussian_filter(between.astype(np.float32), rng.uniform(0.4, 1.5))
    n_turns = int(rng.integers(2))
    shade, cover = np.rot90(np.stack([shade, cover]), n_turns, (1, 2))
    tone = rng.uniform(-0.6, 0.5)  # of mortar
    surface = np.asarray(surface * shade * (1 + tone * cover), np.float32)
    if tone > -0.2:  # in dark mortar, a crack is hard to see
        width = min(mortar, np.exp(rng.uniform(*np.log([1.0, 5.0]))))
        steps = _steps_in_mortar(size, height, length, offset, rng) + rng.normal(0, 0.1 * mortar, (1, 2))
        widths = width * np.exp(rng.uniform(0, 0.4) * smooth_noise(len(steps), 3, rng))
        crack, wide = (
            np.rot90(draw_line(steps, np.maximum(widths, least), size), n_turns) for least in (0.0, MIN_LABEL_PX)
        )
        darkened = rng.uniform(0.4, 0.9) * ndimage.gaussian_filter(crack, rng.uniform(0.3, 0.9))
        _mark(label, wide > 0.5, darkened * surface, surface, width)
        surface = np.asarray(surface * (1 - darkened), np.float32)
    return surface


def _steps_in_mortar(size: int, height: float, length: float, offset: Points, rng: Random) -> Points:
    """Return the course of a crack through the joints of masonry, downwards and to one side."""
    row, column = rng.integers(0, 3), rng.integers(0, max(1, round(2 * size / length)))
    side = 1 if column * length < size else -1
    corners = []
    while row * height - offset[0] < size:
        y = row * height - offset[0]
        x = column * length / 2 - offset[1]
        corners += [(x, y), (x, y + height)]  # a joint between bricks of a row, then one between two rows
        row, column = row + 1, column + side * rng.choice([1, 1, 3])
    corner_points = np.array(corners)
    reached = np.append(0, np.cumsum(np.hypot(*np.diff(corner_points, axis=0).T)))
    along = np.arange(0, reached[-1], STEP_PX)
    course = np.stack([np.interp(along, reached, part) for part in corner_points.T], axis=1)
    wander = np.stack([smooth_noise(len(course), 2.0, rng) for _ in range(2)], axis=1)
    return np.asarray(course + rng.uniform(0.2, 1.5) * wander)


def add_stain(surface: Grey, rng: Random) -> Grey:
    """Return the surface with blotches or streaks, or the edge of a shadow."""
    size = len(surface)
    if rng.random() < 0.35:
        edge = _side(size, rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi))
        edge = edge + rng.choice([0, 3, 10]) * smooth_noise(surface.shape, rng.uniform(5, 30), rng)
        return np.asarray(surface * (1 - rng.uniform(0.1, 0.6) * np.clip(edge / rng.uniform(1, 8), 0, 1)), np.float32)
    long = rng.uniform(4, 40)
    sigmas = [(long, long), (long, long / 6), (long / 6, long)][rng.integers(3)]
    noise = ndimage.gaussian_filter(rng.standard_normal(surface.shape, np.float32), sigmas, mode="wrap")
    blotches = np.clip((noise / noise.std() - rng.uniform(0.5, 1.8)) / rng.uniform(0.1, 1), 0, 1)
    return np.asarray(surface * (1 - rng.uniform(-0.2, 0.4) * blotches), np.float32)


def _side(size: int, point: Points, angle: float) -> Grey:
    """Return the distance from a straight line, px, positive on one side of it."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    return np.asarray((columns - point[0]) * np.sin(angle) - (rows - point[1]) * np.cos(angle), np.float32)


def surface_of(tile: GreyImage, size_px: int, rng: Random) -> Grey:
    """Return a surface, (size_px, size_px), from a grey photo of intact concrete: another cut, size and grain."""
    scale = np.exp(rng.uniform(*np.log([0.5, 1.6])))
    cut = max(32, round(size_px / scale))
    repeated = np.pad(tile, [(0, max(0, cut - side)) for side in tile.shape], mode="reflect")
    top, left = (int(rng.integers(0, side - cut + 1)) for side in repeated.shape)
    picture = Image.fromarray(repeated[top : top + cut, left : left + cut])
    surface = np.asarray(picture.resize((size_px, size_px), Image.Resampling.BICUBIC), np.float32)
    surface = np.rot90(surface, int(rng.integers(4))).copy()
    if rng.random() < 0.4:  # grain, as of asphalt
        grain = smooth_noise(surface.shape, rng.uniform(0.5, 2.0), rng)
        surface = surface * (1 + rng.uniform(0.02, 0.14) * grain)
    mean = surface.mean()
    return np.asarray((surface - mean) * rng.uniform(0.4, 1.6) + rng.uniform(80, 200), np.float32)


def as_photographed(surface: Grey, rng: Random) -> GreyImage:
    """Return the surface as a camera and JPEG would keep it, uint8."""
    blurred = ndimage.gaussian_filter(surface, rng.uniform(0, 1.0))
    seen = np.clip(blurred + rng.normal(0, rng.uniform(0, NOISE), surface.shape), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        file = io.BytesIO()
        Image.fromarray(seen).save(file, "JPEG", quality=int(rng.integers(40, 96)))
        return np.asarray(Image.open(file))
    return np.asarray(seen)


def grey_image(pixels: Pixels) -> GreyImage:
    """Return the grey levels of RGB pixels, (height, width, 3)."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


LOOK_ALIKES: list[Callable[[Grey, Random], Grey]] = [add_joint, add_joint, add_joint, add_pores, add_stain, add_rings]


def draw_example(tile: GreyImage, size_px: int, rng: Random) -> Example:
    """Return a drawn image, grey, and its label: 1 on a crack, 0 elsewhere, IGNORED where a crack is too faint."""
    surface, label = surface_of(tile, size_px, rng), np.zeros((size_px, size_px), np.uint8)
    if rng.random() < 0.12:
        surface = add_bricks(surface, label, rng)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        surface = LOOK_ALIKES[rng.integers(len(LOOK_ALIKES))](surface, rng)
    for _ in range(rng.choice([0, 0, 1, 1, 1, 2])):
        surface = add_crack(surface, label, rng)
    if rng.random() < 0.3:
        surface = LOOK_ALIKES[rng.integers(len(LOOK_ALIKES))](surface, rng)
    return as_photographed(surface, rng), label
