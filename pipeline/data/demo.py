"""Draw the demo data set: tiles of cracked and intact concrete, as a recipe describes them.

Look-alikes of cracks (joints, scratches, shadows) are in both classes, but more often on intact concrete. The numbers
in the drawing functions were chosen by eye, in comparison with photos of real concrete.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.data.random_shapes import (
    Points,
    Raster,
    blobs,
    log_uniform,
    noise_field,
    perpendicular,
    random_path,
    random_walk,
    rasterise,
    stroke,
)
from pipeline.errors import CracksError

LABELS = ("crack", "intact")

Share = Annotated[float, Field(ge=0, le=1)]
WidthPx = Annotated[float, Field(ge=0.1, le=100)]


class Recipe(BaseModel):
    """Parameters of the demo data set. The images also depend on this module and the versions of NumPy and Pillow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(ge=0, description="each image has its own random stream, derived from it")
    size_px: int = Field(ge=32, le=1024, description="side of the square images, px")
    images_per_class: int = Field(ge=1, le=4999, description="distinct images of each class; names have four digits")
    mirrored_per_class: int = Field(ge=0, description="how many of these occur again, mirrored and saved a second time")
    jpeg_quality: int = Field(ge=1, le=95, description="on Pillow's scale; 1 is worst")
    crack_width_px: tuple[WidthPx, WidthPx] = Field(description="range of a crack's typical width, px, log-uniform")
    crack_darkness: tuple[Share, Share] = Field(description="range of the share of light a crack absorbs; 1 is black")
    look_alikes_crack: Share = Field(description="share of the cracked images that also have a look-alike")
    look_alikes_intact: Share = Field(description="share of the intact images that have a look-alike")

    @model_validator(mode="after")
    def _check_consistency(self) -> "Recipe":
        if self.mirrored_per_class > self.images_per_class:
            raise ValueError("mirrored_per_class exceeds images_per_class")
        if any(low > high for low, high in (self.crack_width_px, self.crack_darkness)):
            raise ValueError("the start of a range exceeds its end")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read the recipe at `path`, a YAML file with exactly the keys of `Recipe`. Raises CracksError if it is not."""
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CracksError(f"The recipe {path} cannot be read: {error}. Correct it, or restore it with git.") from None
    except ValidationError as error:
        problems = "".join(
            f"\n  {'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']} (received {problem['input']!r})"
            for problem in error.errors()
        )
        raise CracksError(f"The recipe {path} cannot be used:{problems}\nCorrect it, or restore it with git.") from None


def draw(recipe: Recipe) -> Iterator[tuple[str, bytes]]:
    """Yield the name, such as "crack/0001.jpg", and the bytes of each file, in a fixed order, cracked images first.

    Each class has its distinct images, mirrored copies of the first ones, and a broken file. An image depends on its
    class, its number and the recipe, but not on the counts in the recipe.
    """
    flips = (ImageOps.mirror, ImageOps.flip)
    for label in LABELS:
        images = [_draw_image(recipe, label, number) for number in range(1, recipe.images_per_class + 1)]
        copies = [
            _save(flips[index % 2](Image.open(io.BytesIO(image))), recipe.jpeg_quality)
            for index, image in enumerate(images[: recipe.mirrored_per_class])
        ]
        broken = images[0][: len(images[0]) * 3 // 4] if label == "crack" else b"This is a text, not an image.\n"
        for number, content in enumerate([*images, *copies, broken], start=1):
            yield f"{label}/{number:04d}.jpg", content


def _save(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@dataclass
class _Tile:
    """A square piece of concrete while it is being drawn; its arrays are float32."""

    rng: np.random.Generator
    height_px: Raster  # above the mean plane
    colour: NDArray[np.floating[Any]]  # (size_px, size_px, 3), reflectance relative to plain concrete

    @property
    def size_px(self) -> int:
        return len(self.height_px)

    def engrave(self, mask: Raster, darkness: float, depth_px: float) -> None:
        """Reduce the colour by the share `darkness` and the height by `depth_px` where `mask` is 1."""
        self.colour *= 1 - darkness * mask[..., None]
        self.height_px -= depth_px * mask


def _draw_image(recipe: Recipe, label: str, number: int) -> bytes:
    rng = np.random.default_rng([recipe.seed, LABELS.index(label), number])
    tile = _plain_concrete(rng, recipe.size_px)
    if rng.random() < (recipe.look_alikes_crack if label == "crack" else recipe.look_alikes_intact):
        for kind in rng.choice(len(_LOOK_ALIKES), size=rng.integers(1, 3), replace=False):
            _LOOK_ALIKES[kind](tile)
    if label == "crack":
        for _ in range(1 + rng.binomial(1, 0.2)):
            _add_crack(tile, recipe)
    return _save(_photograph(tile), recipe.jpeg_quality)


def _ends(tile: _Tile) -> tuple[Points, Points]:
    """Return two points outside the tile whose midpoint is well inside it."""
    middle = tile.size_px * tile.rng.uniform(0.3, 0.7, size=2)
    angle = tile.rng.uniform(0, 2 * np.pi)
    reach = 1.2 * tile.size_px * np.array([np.cos(angle), np.sin(angle)])
    return middle - reach, middle + reach


def _plain_concrete(rng: np.random.Generator, size_px: int) -> _Tile:
    """Return a tile with grain (sometimes brushed), mottle, stains, aggregate and pores."""
    grain_px = log_uniform(rng, 1, 3.5)
    brushed = log_uniform(rng, 2, 10) if rng.random() < 0.35 else 1
    grain = noise_field(rng, size_px, 8 * grain_px, grain_px, brushed, rng.uniform(0, np.pi))
    mottle = log_uniform(rng, 0.015, 0.07) * noise_field(rng, size_px, size_px, 4)
    tile = _Tile(rng, log_uniform(rng, 0.1, 0.8) * grain, np.repeat(1 + mottle[..., None], 3, axis=2))
    stain = np.clip(noise_field(rng, size_px, size_px, 12) - rng.uniform(0, 2), 0, 2)
    warmth = rng.uniform(-0.03, 0.03)
    tile.colour *= 1 + stain[..., None] * (rng.uniform(-0.15, 0.1) + np.array([warmth, 0, -warmth]))
    aggregate, pores = (-0.15, -0.3, 0.5, 2.5), (0.45, 1.2, 0.4, 2)
    for darkness, depth_px, smallest_px, largest_px in (aggregate, pores):
        centres = rng.uniform(0, size_px, size=(rng.poisson(log_uniform(rng, 2, 80)), 2))
        mask = rasterise(size_px, blobs(rng, centres, smallest_px, largest_px))
        tile.engrave(mask, darkness * rng.uniform(0.3, 1.3), depth_px)
    return tile


def _add_crack(tile: _Tile, recipe: Recipe) -> None:
    """Add a dark, meandering crack of uneven width with up to three branches."""
    rng = tile.rng
    start, end = _ends(tile)
    path = random_path(rng, start, end, log_uniform(rng, 0.06, 0.2))
    path += (start + end) / 2 - path[len(path) // 2]  # the middle is in the tile
    if rng.random() < 0.3:
        path = path[: int(len(path) * rng.uniform(0.6, 0.75))]  # ends inside, or almost
    typical_px = log_uniform(rng, *recipe.crack_width_px)
    uneven = np.exp(random_walk(rng, len(path), stride=12) + random_walk(rng, len(path), stride=3)).clip(0.3, 2.5)
    widths_px = typical_px * uneven * np.linspace(len(path) / 40, 0, len(path)).clip(0, 1)  # pointed over 40 px
    strokes = [stroke(path, widths_px)]
    for at in rng.integers(len(path) // 4, len(path) * 3 // 4, size=rng.integers(0, 4)):
        ahead = path[at + 10] - path[at]
        ahead *= tile.size_px * rng.uniform(0.15, 0.6) / np.hypot(*ahead)
        turn = rng.choice((-1, 1)) * rng.uniform(0.4, 1.2)  # rad
        branch = random_path(rng, path[at], path[at] + np.cos(turn) * ahead + np.sin(turn) * perpendicular(ahead), 0.2)
        strokes.append(stroke(branch, 0.7 * widths_px[at] * np.linspace(1, 0.2, len(branch))))
    dirt = 0.2 * np.abs(noise_field(rng, tile.size_px, 60, 6)).clip(0, 3)
    faint, dark = recipe.crack_darkness
    darkness = dark - (dark - faint) * rng.random() / max(1, typical_px)  # wide cracks are darker
    tile.engrave(rasterise(tile.size_px, np.concatenate(strokes)) * (1 - dirt), darkness, rng.uniform(0.3, 1.5))


def _add_joints(tile: _Tile) -> None:
    """Add one to three parallel joints or formwork lines: dark, but straight and of even width."""
    rng = tile.rng
    start, end = _ends(tile)
    gap = rng.uniform(0.06, 0.2) * perpendicular(end - start)  # 0.14 to 0.5 sides of the tile
    width_px = log_uniform(rng, 0.5, 5)
    paths = [random_path(rng, start + index * gap, end + index * gap, 0.002) for index in range(rng.integers(1, 4))]
    mask = rasterise(tile.size_px, np.concatenate([stroke(path, width_px) for path in paths]))
    tile.engrave(mask, rng.uniform(0.1, 0.85), rng.uniform(0, 1.5))


def _add_scratches(tile: _Tile) -> None:
    """Add up to five scratches: light and straight to meandering, or dark and straight."""
    rng = tile.rng
    is_dark = rng.random() < 0.3
    strokes = []
    for _ in range(rng.integers(1, 6)):
        path = random_path(rng, *_ends(tile), 0.002 if is_dark else log_uniform(rng, 0.01, 0.2))
        first, last = np.sort(rng.integers(0, len(path) - 20, size=2))
        strokes.append(stroke(path[first : last + 20], log_uniform(rng, 0.4, 2)))
    darkness = rng.uniform(0.15, 0.6) if is_dark else rng.uniform(-0.4, -0.1)
    tile.engrave(rasterise(tile.size_px, np.concatenate(strokes)), darkness, rng.uniform(-0.3, 0.6))


def _add_shadow(tile: _Tile) -> None:
    """Add a soft shadow, from the size of a twig to that of a tree."""
    rng = tile.rng
    path = random_path(rng, *_ends(tile), log_uniform(rng, 0.01, 0.15))
    widths_px = log_uniform(rng, 2, 0.6 * tile.size_px) * np.exp(random_walk(rng, len(path), stride=30))
    sharp = rasterise(tile.size_px, stroke(path, widths_px))
    blur = ImageFilter.GaussianBlur(log_uniform(rng, 1.5, 8))
    soft = np.asarray(Image.fromarray((255 * sharp).astype(np.uint8)).filter(blur), np.float32) / 255
    tile.engrave(soft, rng.uniform(0.15, 0.5), 0)


_LOOK_ALIKES: tuple[Callable[[_Tile], None], ...] = (_add_joints, _add_scratches, _add_shadow)


def _photograph(tile: _Tile) -> Image.Image:
    """Return a photo of the tile: lit from one side, exposed and tinted, with sensor noise and blur."""
    rng = tile.rng
    angle = rng.uniform(0, 2 * np.pi)  # of the light, rad
    slope_y, slope_x = np.gradient(tile.height_px)
    relief = 1 + 0.25 * (slope_x * np.cos(angle) + slope_y * np.sin(angle)).clip(-2.8, 2.8)
    ramp = np.linspace(-1, 1, tile.size_px)
    falloff = 1 + rng.uniform(0, 0.1) * (ramp * np.cos(angle) + ramp[:, None] * np.sin(angle))
    warmth, green = rng.normal(0.015, 0.03), rng.normal(0.005, 0.012)
    tint = np.array([1 + warmth, 1 + green, 0.98 - warmth])
    exposed = rng.uniform(0.48, 0.8) * (relief * falloff)[..., None] * tile.colour * tint
    noisy = exposed + rng.normal(0, rng.uniform(0.003, 0.02), size=(tile.size_px, tile.size_px, 1))
    image = Image.fromarray((255 * noisy.clip(0, 1)).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
