"""What the frozen lower layers of a network make of images, computed once and kept on disk.

Fine-tuning reads it every epoch, where it would otherwise compute most of the network again for the same answer.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import Chosen, Images, Pixels, Sizes
from pipeline.models.tf import keras
from pipeline.params import Augmentation
from pipeline.training.embedder import (
    SHARD_IMAGES,
    compute_all,
    compute_function,
    compute_missing_shards,
    shard_path,
    shards_of,
)

Activations = npt.NDArray[np.float16]


def augmented(pixels: Pixels, augmentation: Augmentation, rng: np.random.Generator) -> Pixels:
    """Return the image flipped and turned at random: uint8, the same shape; edges are filled by reflection."""
    if augmentation.flips != "vertical" and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if augmentation.flips != "horizontal" and rng.random() < 0.5:
        pixels = pixels[::-1]
    turns = rng.uniform(-augmentation.max_rotation_turns, augmentation.max_rotation_turns)
    height, width = pixels.shape[:2]
    # No corner of the turned frame reaches further out than this.
    margin = int(np.ceil((np.hypot(height, width) - min(height, width)) / 2))
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    turned = np.asarray(Image.fromarray(wide).rotate(360 * turns, Image.Resampling.BILINEAR))
    return turned[margin : margin + height, margin : margin + width]


@dataclass(frozen=True)
class AugmentedViews:
    """Images as they are, followed by `n_views - 1` augmented versions of all of them."""

    images: Images
    n_views: int
    augmentation: Augmentation
    seed: int

    @property
    def sizes(self) -> Sizes:
        """Height and width of each view in pixels, (n_views * n_images, 2)."""
        return np.tile(self.images.sizes, (self.n_views, 1))

    def pixels(self, position: int) -> Pixels:
        """Return a view, the same one each time: RGB, uint8, (height, width, 3)."""
        view, image = divmod(position, len(self.images.sizes))
        pixels = self.images.pixels(image)
        if view == 0:
            return pixels
        return augmented(pixels, self.augmentation, np.random.default_rng([self.seed, position]))


class ActivationCache:
    """Arrays of one shape that are kept in shards in a folder, read when they are asked for."""

    def __init__(self, folder: Path, n_rows: int) -> None:
        self._shards = [np.load(shard_path(folder, shard), mmap_mode="r") for shard in shards_of(n_rows)]
        self.shape: tuple[int, ...] = self._shards[0].shape[1:]
        self.n_rows = n_rows

    def row(self, position: int) -> Activations:
        """Return the array at `position`, float16, of `shape`."""
        shard, row = divmod(position, SHARD_IMAGES)
        activations: Activations = self._shards[shard][row]
        return activations


def cache_activations(lower: keras.Model, images: Images, folder: Path) -> ActivationCache:
    """Run images through frozen layers once, going on from the shards that are in `folder`.

    Args:
        lower: uint8 (batch, height, width, 3) -> {"features": (batch, …)}, one shape for every size of image.
        images: what is run through.
        folder: where the shards are kept.
    """
    shape = lower.output["features"].shape[1:]
    compute = compute_function(lower)
    n_images = len(images.sizes)
    compute_missing_shards(
        folder, n_images, lambda shard: compute_all(compute, Chosen(images, shard), shape), "frozen layers"
    )
    return ActivationCache(folder, n_images)


def cache_features(upper: keras.Model, kept: ActivationCache, folder: Path) -> ActivationCache:
    """Run what is kept through more frozen layers, once: (batch, …) -> (batch, n_features)."""

    def activations(shard: range) -> Activations:
        batch = np.stack([kept.row(position) for position in shard])
        return np.asarray(upper.predict(batch, verbose=0), np.float16)

    compute_missing_shards(folder, kept.n_rows, activations, "frozen upper layers")
    return ActivationCache(folder, kept.n_rows)
