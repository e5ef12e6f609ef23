"""The activation cache: outputs of a network's frozen lower layers, stored on disk for all epochs of fine-tuning."""

from pathlib import Path

import numpy as np

from pipeline.data.images import Images, ImageSubset, Sizes
from pipeline.models.tf import keras
from pipeline.training.embedder import SHARD_ROWS, Rows, Shards, compute_all, compute_function


class ActivationCache:
    """Activations of images, read on demand as images are."""

    def __init__(self, shards: Shards) -> None:
        self._arrays = shards.arrays()
        self.shape: tuple[int, ...] = self._arrays[0].shape[1:]
        self.sizes: Sizes = np.ones((sum(map(len, self._arrays)), 2), np.int64)  # all are of one shape

    def pixels(self, position: int) -> Rows:
        """Return the activations of the image at `position`, float16, of `shape`."""
        shard, row = divmod(position, SHARD_ROWS)
        return np.asarray(self._arrays[shard][row])


def cache_activations(lower: keras.Model, images: Images, folder: Path) -> ActivationCache:
    """Return the cached outputs of frozen layers for all images, computing the shards that `folder` lacks.

    `lower` maps uint8 (batch, height, width, 3) to {"features": (batch, …)}, of one shape for images of any size.
    """
    shape = lower.output["features"].shape[1:]
    compute = compute_function(lower)
    shards = Shards(folder, len(images.sizes))
    shards.compute_missing(lambda shard: compute_all(compute, ImageSubset(images, shard), shape), "frozen layers")
    return ActivationCache(shards)


def cache_features(upper: keras.Model, cache: ActivationCache, folder: Path) -> ActivationCache:
    """Return the cached outputs of further frozen layers for cached activations: (batch, …) -> (batch, n_features)."""

    def activations(shard: range) -> Rows:
        batch = np.stack([cache.pixels(position) for position in shard])
        return np.asarray(upper.predict(batch, verbose=0), np.float16)

    shards = Shards(folder, len(cache.sizes))
    shards.compute_missing(activations, "frozen upper layers")
    return ActivationCache(shards)
