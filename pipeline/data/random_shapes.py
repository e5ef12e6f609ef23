"""Random noise, curves and blobs, from which the demo images, and the cracks that train the tracer, are drawn."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SUPERSAMPLING = 4  # shapes are rasterised this many times larger and averaged, for widths below one pixel

Raster = NDArray[np.floating[Any]]  # (size_px, size_px)
Points = NDArray[np.floating[Any]]  # (n, 2) or (2,), x and y in px
Polygons = NDArray[np.floating[Any]]  # (n, corners, 2), x and y in px


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a random number in low..high, uniform on a logarithmic scale."""
    return float(low * (high / low) ** rng.random())


def noise_field(
    rng: np.random.Generator, size_px: int, coarsest_px: float, finest_px: float, stretch: float = 1, angle: float = 0
) -> Raster:
    """Return random noise of mean 0 and deviation 1 with wavelengths from `coarsest_px` to `finest_px`.

    All octaves are equally strong, as in most natural textures. It is `stretch` times coarser along `angle` (rad).
    """
    fy, fx = np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)
    frequency = np.hypot((fx * np.cos(angle) + fy * np.sin(angle)) * stretch, fy * np.cos(angle) - fx * np.sin(angle))
    frequency[0, 0] = 1  # avoids a division by 0; the mean is removed below
    amplitude = np.exp(-((frequency * finest_px) ** 2) - (frequency * coarsest_px) ** -2) / frequency
    spectrum = np.fft.rfft2(rng.standard_normal((size_px, size_px), np.float32)) * amplitude.astype(np.float32)
    field = np.fft.irfft2(spectrum, (size_px, size_px))
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def rasterise(size_px: int, polygons: Polygons) -> Raster:
    """Return the share of each pixel that is covered by `polygons`, float32, 0..1."""
    canvas = Image.new("L", (size_px * SUPERSAMPLING, size_px * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for polygon in (polygons * SUPERSAMPLING).reshape(len(polygons), 2 * polygons.shape[1]).tolist():
        pen.polygon(polygon, fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), np.float32) / 255


def stroke(path: Points, width_px: NDArray[np.floating[Any]] | float) -> Polygons:
    """Return quadrilaterals that form a line along `path`; `width_px` is one width, or one for each point."""
    tangent = np.gradient(path, axis=0)
    normal = perpendicular(tangent) / np.linalg.norm(tangent, axis=1, keepdims=True)
    offset = normal * np.reshape(width_px, (-1, 1)) / 2
    left, right = path + offset, path - offset
    return np.stack([left[:-1], left[1:], right[1:], right[:-1]], axis=1)


def blobs(rng: np.random.Generator, centres: Points, smallest_px: float, largest_px: float) -> Polygons:
    """Return an irregular octagon around each of `centres`, with log-uniform radii."""
    radius_px = smallest_px * np.power(largest_px / smallest_px, rng.random((len(centres), 1)))
    corners_px = radius_px * rng.uniform(0.6, 1.4, size=(len(centres), 8))
    angles = np.arange(8) * np.pi / 4
    x, y = centres[:, :1] + corners_px * np.cos(angles), centres[:, 1:] + corners_px * np.sin(angles)
    return np.stack([x, y], axis=-1)


def perpendicular(vectors: Points) -> Points:
    """Return `vectors` turned by 90 degrees."""
    return np.stack([-vectors[..., 1], vectors[..., 0]], axis=-1)


def random_walk(rng: np.random.Generator, count: int, stride: int) -> NDArray[np.floating[Any]]:
    """Return a random walk, (count,), from 0 to 0 with a turn every `stride` points; its deviation halfway is 0.5."""
    turns = np.cumsum(rng.normal(0, np.sqrt(stride / count), size=count // stride + 2))
    turns -= np.linspace(turns[0], turns[-1], len(turns))
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(turns)), turns)


def random_path(rng: np.random.Generator, start: Points, end: Points, meander: float) -> Points:
    """Return points about 1 px apart from `start` to `end`, displaced sideways by about `meander` times the length."""
    along = end - start
    count = max(8, int(np.hypot(*along)))
    sideways = random_walk(rng, count, stride=int(rng.integers(8, 28))) + 0.2 * random_walk(rng, count, stride=2)
    return start + np.linspace(0, 1, count)[:, None] * along + meander * sideways[:, None] * perpendicular(along)
