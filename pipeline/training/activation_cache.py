"""The activation cache: outputs of a network's frozen lower layers, stored on disk for all epochs of fine-tuning."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images, ImageSubset, Sizes
from pipeline.models.tf import keras
from pipeline.training.embedder import SHARD_ROWS, Shards, compute_all, compute_function
from pipeline.training.features import Features


class ActivationCache:
    """Activations of images, read on demand as images are."""

    def __init__(self, shards: list[Features], positions: npt.NDArray[np.int64] | None = None) -> None:
        """Set shards of activations, and the positions of the images in them; None: all, in their order."""
        self._shards = shards
        self._positions = np.arange(sum(map(len, shards))) if positions is None else positions
        self.shape: tuple[int, ...] = shards[0].shape[1:]
        self.sizes: Sizes = np.ones((len(self._positions), 2), np.int64)  # all are of one shape

    def part(self, positions: npt.NDArray[np.int64]) -> "ActivationCache":
        """Return the activations of the images at these positions."""
        return ActivationCache(self._shards, self._positions[positions])

    def pixels(self, position: int) -> Features:
        """Return the activations of the image at `position`, float16, of `shape`."""
        shard, row = divmod(int(self._positions[position]), SHARD_ROWS)
        return np.asarray(self._shards[shard][row])


def cache_activations(lower: keras.Model, images: Images, folder: Path) -> ActivationCache:
    """Return the cached outputs of frozen layers for all images, computing the shards that `folder` lacks.

    `lower` maps uint8 (batch, height, width, 3) to {"features": (batch, …)}, of one shape for images of any size.
    """
    shape = lower.output["features"].shape[1:]
    compute = compute_function(lower)

    def activations(shard: range) -> Features:
        return compute_all(compute, ImageSubset(images, shard), shape)

    return ActivationCache(Shards(folder, len(images.sizes)).compute_missing(activations, "frozen layers"))


def cache_features(upper: keras.Model, cache: ActivationCache, folder: Path) -> ActivationCache:
    """Return the cached outputs of further frozen layers for cached activations: (batch, …) -> (batch, n_features)."""

    def activations(shard: range) -> Features:
        batch = np.stack([cache.pixels(position) for position in shard])
        return np.asarray(upper.predict(batch, verbose=0), np.float16)

    return ActivationCache(Shards(folder, len(cache.sizes)).compute_missing(activations, "frozen upper layers"))
