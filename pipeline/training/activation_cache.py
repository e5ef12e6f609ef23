"""The activation cache: outputs of the frozen lower layers of a network, computed once and stored on disk.

Fine-tuning reads it in every epoch instead of computing most of the network again with the same result.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import Images, ImageSubset, Pixels, Sizes
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


class ActivationCache:
    """Arrays of one shape, stored in shards in a folder and read on demand."""

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
    """Return the cached outputs of frozen layers for all images, computing the shards that `folder` lacks.

    Args:
        lower: uint8 (batch, height, width, 3) -> {"features": (batch, …)}, of one shape for images of any size.
        images: the images.
        folder: folder of the shards.
    """
    shape = lower.output["features"].shape[1:]
    compute = compute_function(lower)
    n_images = len(images.sizes)
    compute_missing_shards(
        folder, n_images, lambda shard: compute_all(compute, ImageSubset(images, shard), shape), "frozen layers"
    )
    return ActivationCache(folder, n_images)


def cache_features(upper: keras.Model, cache: ActivationCache, folder: Path) -> ActivationCache:
    """Return the cached outputs of further frozen layers for cached activations: (batch, …) -> (batch, n_features)."""

    def activations(shard: range) -> Activations:
        batch = np.stack([cache.row(position) for position in shard])
        return np.asarray(upper.predict(batch, verbose=0), np.float16)

    compute_missing_shards(folder, cache.n_rows, activations, "frozen upper layers")
    return ActivationCache(folder, cache.n_rows)
