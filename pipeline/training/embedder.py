"""Run a frozen network over many images, in shards, with OpenVINO on a CPU or with TensorFlow on a GPU."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
from tqdm import tqdm

from pipeline.data.images import Images, ImageSubset, Pixels, batches_by_size
from pipeline.files import replacing
from pipeline.inference.openvino_cpu import N_THREADS, CompiledGraph, supported_precision
from pipeline.models.network import as_tf_function, build_embedder, to_openvino
from pipeline.models.tf import keras, tf
from pipeline.params import Backbone, Precision
from pipeline.training.features import Features

log = logging.getLogger(__name__)

Compute = Callable[[Pixels], npt.NDArray[np.float32]]  # uint8 (batch, height, width, 3) -> (batch, n_features)

SHARD_ROWS = 1024  # a few seconds of work: a killed run loses little, and the overhead of a shard is small
BATCH_IMAGES = 8  # the original images of a larger one do not fit the CPU's cache


class Embedder:
    """Computes the features of a frozen backbone."""

    def __init__(self, backbone: Backbone) -> None:
        model = build_embedder(backbone)
        self.n_features: int = model.output["features"].shape[-1]
        if on_gpu():
            self._exact = self._for_training = tensorflow_compute(model)
            return
        wanted = backbone.training_precision
        graph, precision = to_openvino(model), supported_precision(wanted)
        if precision != wanted:
            log.info("This CPU does not support %s: training features are computed in %s too", wanted, precision)
        self._exact = openvino_compute(graph)
        self._for_training = self._exact if precision == "f32" else openvino_compute(graph, precision)

    def features(self, images: Images, *, for_training: bool = False) -> Features:
        """Return float16, (n, n_features), in f32, or `for_training` in the training precision if supported."""
        return compute_all(self._for_training if for_training else self._exact, images, (self.n_features,))


def compute_all(compute: Compute, images: Images, shape: tuple[int, ...]) -> Features:
    """Return `compute` of all images, float16, (n, *shape); each thread decodes a batch, then computes it."""
    results = np.empty((len(images.sizes), *shape), np.float16)

    def fill(positions: npt.NDArray[np.int64]) -> None:
        batch = np.stack([images.pixels(int(position)) for position in positions])
        results[positions] = compute(batch)

    with ThreadPoolExecutor(N_THREADS) as pool:
        for _ in pool.map(fill, batches_by_size(images.sizes, BATCH_IMAGES)):
            pass  # raises the exception of a batch
    return results


def compute_function(model: keras.Model) -> Compute:
    """Return `model` (uint8 images -> {"features"}) as a function of one batch, on the GPU if there is one."""
    return tensorflow_compute(model) if on_gpu() else openvino_compute(to_openvino(model))


def on_gpu() -> bool:
    """Return whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def tensorflow_compute(model: keras.Model) -> Compute:
    """Return `model` (uint8 images -> {"features"}) as a function of one batch, run by TensorFlow."""
    graph = as_tf_function(model)
    return lambda batch: np.asarray(graph(batch)["features"])


def openvino_compute(graph: "openvino.Model", precision: Precision = "f32") -> Compute:
    """Return a converted graph as a thread-safe function of one batch, run by OpenVINO with one stream per core."""
    compiled = CompiledGraph(graph, precision)
    return lambda batch: compiled(batch)["features"]


class Shards:
    """The rows of an array, one for each image, in files of 1,024 rows, so that a killed computation can resume."""

    def __init__(self, folder: Path, n_rows: int) -> None:
        self._folder = folder
        self._ranges = [range(start, min(n_rows, start + SHARD_ROWS)) for start in range(0, n_rows, SHARD_ROWS)]

    def _path(self, shard: range) -> Path:
        return self._folder / f"{shard.start:09}.npy"

    def missing(self) -> list[range]:
        """Return the positions of each shard that is not computed yet."""
        return [shard for shard in self._ranges if not self._path(shard).exists()]

    def save(self, shard: range, rows: Features) -> None:
        """Write a finished shard atomically."""
        with replacing(self._path(shard)) as partial, partial.open("wb") as file:
            np.save(file, rows)

    def compute_missing(self, compute: Callable[[range], Features], progress: str) -> list[Features]:
        """Compute and save each missing shard; return all of them. `progress` labels the progress bar."""
        for shard in tqdm(self.missing(), desc=progress, unit=" shards", disable=None):
            self.save(shard, compute(shard))
        return self.arrays()

    def arrays(self) -> list[Features]:
        """Return all shards in order, read on demand."""
        return [np.load(self._path(shard), mmap_mode="r") for shard in self._ranges]


@lru_cache(maxsize=1)
def embedder_of(backbone: Backbone) -> Embedder:
    """Return the embedder of a backbone; the last one is cached, so that a Dask worker builds it once."""
    return Embedder(backbone)


def embed_in_shards(
    backbone: Backbone, images: Images, unfinished: Path, what: str, *, for_training: bool = False
) -> Features:
    """Return the features of all images, float16, (n, n_features), computing the shards that `unfinished` lacks.

    `what` names the images on the progress bar; with `for_training` the backbone's training precision is used.
    """

    def features(shard: range) -> Features:
        return embedder_of(backbone).features(ImageSubset(images, shard), for_training=for_training)

    return np.concatenate(Shards(unfinished, len(images.sizes)).compute_missing(features, f"embedding {what}"))
