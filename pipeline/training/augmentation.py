"""Changed versions of training images: random ones that depend only on the seed and their number, and orientations."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.images import Images, Pixels, Sizes
from pipeline.params import Augmentation

N_OTHERS = 7  # orientations of a square besides the original one


def augmented(pixels: Pixels, augmentation: Augmentation, rng: np.random.Generator) -> Pixels:
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


@dataclass(frozen=True)
class AugmentedViews:
    """All images unchanged, followed by `n_views - 1` augmented versions of all of them."""

    images: Images
    n_views: int
    augmentation: Augmentation
    seed: int

    @property
    def sizes(self) -> Sizes:
        """Height and width of each view in pixels, (n_views * n_images, 2)."""
        return np.tile(self.images.sizes, (self.n_views, 1))

    def pixels(self, position: int) -> Pixels:
        """Return a view, reproducibly: RGB, uint8, (height, width, 3)."""
        view, image = divmod(position, len(self.images.sizes))
        pixels = self.images.pixels(image)
        if view == 0:
            return pixels
        return augmented(pixels, self.augmentation, np.random.default_rng([self.seed, position]))


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
