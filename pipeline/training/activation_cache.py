"""The activation cache: outputs of the frozen lower layers of a network, computed once and stored on disk.

Fine-tuning reads it in every epoch instead of computing most of the network again with the same result.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images, ImageSubset, Sizes
from pipeline.models.tf import keras
from pipeline.training.embedder import (
    SHARD_IMAGES,
    compute_all,
    compute_function,
    compute_missing_shards,
    shard_path,
    shards_of,
)

Activations = npt.NDArray[np.float16]


class ActivationCache:
    """Arrays of one shape, stored in shards in a folder and read on demand, as images are."""

    def __init__(self, folder: Path, n_images: int) -> None:
        self._shards = [np.load(shard_path(folder, shard), mmap_mode="r") for shard in shards_of(n_images)]
        self.shape: tuple[int, ...] = self._shards[0].shape[1:]
        self.sizes: Sizes = np.ones((n_images, 2), np.int64)  # all are of one shape

    def pixels(self, position: int) -> Activations:
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
        batch = np.stack([cache.pixels(position) for position in shard])
        return np.asarray(upper.predict(batch, verbose=0), np.float16)

    n_images = len(cache.sizes)
    compute_missing_shards(folder, n_images, activations, "frozen upper layers")
    return ActivationCache(folder, n_images)
