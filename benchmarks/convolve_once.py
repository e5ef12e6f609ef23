"""Compares convolving a photo once with scoring its tiles one by one: difference of the scores, and time.

    python -m benchmarks.convolve_once --photo photo.jpg [--model starter]

The served graph is changed to take the whole photo and to pool each feature layer over the window of each tile instead
of over the image. So each pixel is convolved once, however much tiles overlap. The scores differ, because at the edge
of a tile the network gets the pixels beyond, not the zeros that it was trained with.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
from openvino import opset8 as ops
from sklearn.metrics import roc_auc_score

from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.data.images import Pixels
from pipeline.data.photos import read_photo
from pipeline.inference.served import GRAPH_FILE, ServedModel
from pipeline.params import Map
from pipeline.registry.model_lookup import STARTER, found_model

TILE_PX = 256


def convolving_once(graph: "openvino.Model", rows: int, columns: int, image_size_px: int) -> "openvino.Model":
    """Return the graph changed to take a photo of rows x columns tiles: uint8 (1, height, width, 3) -> (n_tiles,)."""
    nodes = graph.get_ordered_ops()
    (resize,) = (node for node in nodes if node.get_type_name() == "Interpolate")
    size = np.array([rows * image_size_px, columns * image_size_px], np.int32)
    resize.input(1).replace_source_output(ops.constant(size).output(0))
    graph.reshape([1, -1, -1, 3])
    (feature_layers,) = (
        node for node in nodes if node.get_type_name() == "Concat" and node.get_output_partial_shape(0).rank == 2
    )
    pooled = [_pooled(layer.get_source_output().get_node(), rows, columns) for layer in feature_layers.inputs()]
    features = ops.transpose(ops.concat(pooled, 1), np.array([0, 2, 3, 1]))  # (1, rows, columns, n_features)
    n_features = feature_layers.get_output_partial_shape(0)[1].get_length()
    feature_layers.output(0).replace(ops.reshape(features, np.array([-1, n_features]), False).output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def _pooled(reduction: "openvino.Node", rows: int, columns: int) -> "openvino.Node":
    """Return mean or maximum over the window of each tile, for a reduction over the image: (1, c, rows, columns)."""
    values = reduction.input(0).get_source_output()
    height, width = (values.get_partial_shape()[axis].get_length() for axis in (2, 3))
    kernel = [height // rows, width // columns]
    if reduction.get_type_name() == "ReduceMean":
        return ops.avg_pool(values, kernel, [0, 0], [0, 0], kernel, True)
    return ops.max_pool(values, kernel, [1, 1], [0, 0], [0, 0], kernel).output(0)


def best_of(call: Callable[[], object], n: int = 3) -> float:
    """Return the fewest seconds of `n` calls."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def cropped_to_tiles(pixels: Pixels) -> Pixels:
    """Return the photo cropped to complete tiles."""
    height, width, _ = pixels.shape
    return np.ascontiguousarray(pixels[: height // TILE_PX * TILE_PX, : width // TILE_PX * TILE_PX])


def compare(model: ServedModel, graph: "openvino.Model", pixels: Pixels) -> str:
    """Return a row of the table."""
    rows, columns = (side // TILE_PX for side in pixels.shape[:2])
    mapper = CrackMapper(model, Map(tile_px=TILE_PX, overlap=0, model_mm_per_px=None))
    changed = convolving_once(graph, rows, columns, model.image_size_px)
    once = openvino.Core().compile_model(changed, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    probabilities = np.array(once({0: pixels[None]})["probability"])
    tiles = mapper.map(pixels).tiles["probability"].to_numpy()
    apart = np.abs(probabilities - tiles)
    called = tiles >= model.decision.threshold
    agreement = roc_auc_score(called, probabilities)
    return (
        f"| {best_of(lambda: mapper.map(pixels)):.2f} | {best_of(lambda: once({0: pixels[None]})):.2f} | "
        f"{apart.mean():.3f} | {np.quantile(apart, 0.95):.3f} | {apart.max():.3f} | {agreement:.3f} |"
    )


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, nargs="+")
    parser.add_argument("--model", default=STARTER, help="`starter`, or the folder of a candidate")
    args = parser.parse_args()
    print("| photo | tiles (s) | once (s) | difference: mean | 95 % | maximum | AUROC against the tiles' labels |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    with found_model("none", args.model) as found:
        model = found.load()
        for photo in args.photo:
            graph = openvino.Core().read_model(found.folder / GRAPH_FILE)
            pixels = cropped_to_tiles(read_photo(photo.read_bytes()).pixels)
            print(f"| {photo.name} {compare(model, graph, pixels)}", flush=True)


if __name__ == "__main__":
    main()
