"""Changed versions of training images: random ones that depend only on the seed and their number, and orientations."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from pipeline.data.images import Images, Pixels, Sizes
from pipeline.params import Augmentation

N_OTHERS = 7  # orientations of a square besides the original one


def augmented(pixels: Pixels, rng: np.random.Generator, augmentation: Augmentation) -> Pixels:
    """Return the image randomly flipped and rotated: uint8, the same shape; edges are filled by reflection."""
    if augmentation.flips != "vertical" and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if augmentation.flips != "horizontal" and rng.random() < 0.5:
        pixels = pixels[::-1]
    turns = rng.uniform(-augmentation.max_rotation_turns, augmentation.max_rotation_turns)
    height, width = pixels.shape[:2]
    # The corners of the rotated frame reach no further out than this.
    margin = int(np.ceil((np.hypot(height, width) - min(height, width)) / 2))
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    rotated = np.asarray(Image.fromarray(wide).rotate(360 * turns, Image.Resampling.BILINEAR))
    return rotated[margin : margin + height, margin : margin + width]


def strongly_augmented(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the image changed so much that its source is hard to recognise: uint8, the same shape.

    It is rotated by quarter turns and mirrored, scaled (to 50 to 115 %; what is missing is filled by reflection), and
    gets another contrast, brightness, colour, gradient of brightness, noise, blur and JPEG compression, each of these
    with some probability.
    """
    turned = np.rot90(pixels[:, ::-1] if rng.random() < 0.5 else pixels, int(rng.integers(4)))
    image = Image.fromarray(_in_random_light(_at_random_scale(turned, pixels.shape[:2], rng), rng))
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
    if rng.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(25, 90)))
        image = Image.open(file)
    return np.asarray(image)


def _at_random_scale(pixels: Pixels, shape: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Return the image at a random scale, cut or filled by reflection to (height, width)."""
    scale = np.exp(rng.uniform(np.log(0.5), np.log(1.15))) if rng.random() < 0.7 else 1.0
    size = [max(round(side * scale), 1) for side in pixels.shape[1::-1]]
    method = Image.Resampling.LANCZOS if scale < 0.9 else Image.Resampling.BILINEAR
    scaled = np.asarray(Image.fromarray(pixels).resize(size, method))
    spare = [max(wanted - side, 0) for wanted, side in zip(shape, scaled.shape, strict=False)]
    before = [int(rng.integers(0, n + 1)) for n in spare]
    filled = np.pad(scaled, [*((b, n - b) for b, n in zip(before, spare, strict=True)), (0, 0)], mode="symmetric")
    top, left = (int(rng.integers(0, side - wanted + 1)) for wanted, side in zip(shape, filled.shape, strict=False))
    return filled[top : top + shape[0], left : left + shape[1]]


def _in_random_light(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the image with a random contrast, brightness, colour, gradient of brightness and noise."""
    values = pixels.astype(np.float64)
    if rng.random() < 0.8:
        mean = values.mean((0, 1))
        contrast = np.exp(rng.uniform(np.log(0.5), np.log(1.6)))
        values = (values - mean) * contrast + mean + (rng.uniform(-35, 35) + rng.uniform(-12, 12, 3))
    if rng.random() < 0.25:
        values = values.mean(2, keepdims=True).repeat(3, 2)
    if rng.random() < 0.3:  # as lit from one side
        down, right = (np.linspace(-0.5, 0.5, side)[:, None] * rng.uniform(-40, 40) for side in values.shape[:2])
        values = values + down[:, None] + right
    if rng.random() < 0.3:
        values = values + rng.normal(0, rng.uniform(1, 8), values.shape)
    return values.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class AugmentedViews:
    """All images unchanged, followed by `n_views - 1` augmented versions of all of them."""

    images: Images
    n_views: int
    change: Callable[[Pixels, np.random.Generator], Pixels]
    seed: int

    @property
    def sizes(self) -> Sizes:
        """Height and width of each view in pixels, (n_views * n_images, 2)."""
        return np.tile(self.images.sizes, (self.n_views, 1))

    def pixels(self, position: int) -> Pixels:
        """Return a view, reproducibly: RGB, uint8, (height, width, 3)."""
        view, image = divmod(position, len(self.images.sizes))
        pixels = self.images.pixels(image)
        return self.change(pixels, np.random.default_rng([self.seed, position])) if view else pixels


class OtherOrientations:
    """All images in the seven other orientations: first all rotated by 90 degrees, then all by 180, and so on."""

    def __init__(self, images: Images) -> None:
        self._images = images
        turned = [images.sizes[:, ::-1] if _orientation(number)[0] % 2 else images.sizes for number in range(N_OTHERS)]
        self.sizes: Sizes = np.concatenate(turned)

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, (height, width, 3)."""
        number, image = divmod(position, len(self._images.sizes))
        quarter_turns, is_mirrored = _orientation(number)
        pixels = self._images.pixels(image)
        return np.rot90(pixels[:, ::-1] if is_mirrored else pixels, quarter_turns)


def _orientation(number: int) -> tuple[int, bool]:
    """Return the number of quarter turns of an orientation 0..6, and whether the image is mirrored first."""
    return (number + 1) % 4, number >= 3
