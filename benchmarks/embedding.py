"""Measures images per second through a frozen backbone for each way to run it, and the share of the machine's rate.

    python -m benchmarks.embedding --metu metu-subset.zip

Runs the backbone of examples/params.metu.yaml on decoded images of the archive, alternating between Keras `predict`,
the same graph as a `tf.function`, and OpenVINO with a thread per core, which `embed` uses on CPUs: in single precision
and, if this CPU supports it, in bfloat16. Prints images per second, CPU milliseconds per image, the share of the rate
at which this machine multiplies matrices in single precision (NumPy, all cores), and the largest difference of the
features from those of Keras. Resizing is part of the graph and of the time, but is not counted as arithmetic.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from tqdm import tqdm

from pipeline.data.images import PackedImages, Pixels
from pipeline.inference.openvino_cpu import N_THREADS, supported_precision
from pipeline.models.backbones import build_backbone
from pipeline.models.network import build_embedder, to_openvino
from pipeline.models.tf import keras
from pipeline.params import Backbone, Params
from pipeline.training.embedder import BATCH_IMAGES, Compute, openvino_compute, tensorflow_compute

Values = npt.NDArray[np.float32]
Way = Callable[[Pixels], Values]

EXAMPLE = Path("examples/params.metu.yaml")
KERAS_BATCH_IMAGES = 32  # the default of `predict`
MATRIX_SIZE, N_PRODUCTS = 2048, 10


def cpu_s() -> float:
    """Return the CPU seconds of this process so far, of user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def matrix_product_rate() -> float:
    """Return the operations per second of a product of large matrices; a multiply-add counts as two."""
    matrix = np.random.default_rng(0).random((MATRIX_SIZE, MATRIX_SIZE), np.float32)
    _ = matrix @ matrix
    started_s = time.perf_counter()
    for _ in range(N_PRODUCTS):
        _ = matrix @ matrix
    return 2 * MATRIX_SIZE**3 * N_PRODUCTS / (time.perf_counter() - started_s)


def operations_of(backbone: Backbone) -> int:
    """Return the operations of all convolutions for one image."""
    network = build_backbone(backbone.architecture, backbone.feature_layers, pretrained=False)
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    convolutions = [layer for layer in network.layers if isinstance(layer, kinds)]
    outputs = keras.Model(network.input, [layer.output for layer in convolutions])
    image = np.zeros((1, backbone.image_size_px, backbone.image_size_px, 3), np.float32)
    # Each position of an output uses every weight of the kernel once.
    return sum(
        2 * output.shape[1] * output.shape[2] * layer.kernel.shape.num_elements()
        for layer, output in zip(convolutions, outputs(image), strict=True)
    )


def ways_of(backbone: Backbone) -> dict[str, Way]:
    """Return each way to run the backbone, from uint8 (n, height, width, 3) to float32 (n, n_features)."""
    model = build_embedder(backbone)
    graph = to_openvino(model)

    def in_batches(images: Pixels) -> list[Pixels]:
        return np.array_split(images, range(BATCH_IMAGES, len(images), BATCH_IMAGES))

    def in_threads(compute: Compute) -> Way:
        def compute_all(images: Pixels) -> Values:
            with ThreadPoolExecutor(N_THREADS) as pool:
                return np.concatenate(list(pool.map(compute, in_batches(images))))

        return compute_all

    one_thread = tensorflow_compute(model)
    ways: dict[str, Way] = {
        "Keras `predict`": lambda images: model.predict(images, KERAS_BATCH_IMAGES, verbose=0)["features"],
        "`tf.function`": lambda images: np.concatenate([one_thread(batch) for batch in in_batches(images)]),
        "OpenVINO, f32": in_threads(openvino_compute(graph)),
    }
    if supported_precision("bf16") == "bf16":
        ways["OpenVINO, bf16"] = in_threads(openvino_compute(graph, "bf16"))
    return ways


def images_of(archive: Path, n: int) -> Pixels:
    """Return the first n images of an archive, all of one size: uint8, (n, height, width, 3)."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
        settings["datasets"] = {"metu": {"source": str(archive.absolute())}}
        params = Path(scratch, "params.yaml")
        params.write_text(yaml.safe_dump(settings), encoding="utf-8")
        out = Path(scratch, "metu")
        command = [sys.executable, "-m", "pipeline.ingest", "--params", str(params), "--dataset", "metu"]
        subprocess.run([*command, "--out", str(out)], check=True)
        images = PackedImages(out)
        return np.stack([images.pixels(row) for row in range(n)])


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="archive of METU's layout")
    parser.add_argument("--images", type=int, default=1600, help="of each round (default: 1600)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are printed (default: 3)")
    args = parser.parse_args()
    settings = Params.model_validate(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    (backbone,) = settings.backbones.values()
    images = images_of(args.metu, args.images)
    ways = ways_of(backbone)
    features = {name: way(images[: 4 * KERAS_BATCH_IMAGES]) for name, way in ways.items()}  # and the first call
    took = {name: np.empty((args.rounds, 2)) for name in ways}
    for round_ in tqdm(range(args.rounds), desc="rounds"):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), cpu_s()
            way(images)
            took[name][round_] = time.perf_counter() - wall, cpu_s() - cpu
    rate, operations = matrix_product_rate(), operations_of(backbone)
    print(
        f"{backbone.architecture} at {backbone.image_size_px} px: {operations / 1e9:.2f} G operations an image. "
        f"Matrices are multiplied at {rate / 1e9:.0f} G operations a second.\n"
        "| run by | images/s | CPU ms per image | share of that rate | difference of features |\n"
        "| --- | --: | --: | --: | --: |"
    )
    first, *_ = features.values()
    for name, times in took.items():
        wall_s, cpu = np.median(times, axis=0) / args.images
        difference = np.abs(features[name] - first).max()
        print(f"| {name} | {1 / wall_s:.0f} | {1e3 * cpu:.2f} | {operations / wall_s / rate:.0%} | {difference:.0e} |")


if __name__ == "__main__":
    main()
