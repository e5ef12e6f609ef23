"""Measures the time to map a photo, compared with Keras `predict` on the same tiles.

    python -m benchmarks.crack_map --photo photo.jpg [--model starter] [--rounds 3]

Alternates in one process between mapping, from the photo's file to all files of its map, and Keras `predict` at batch
32 on its tiles, which are decoded and cut before the clock starts; without overlap and at 50 %. Prints medians over the
rounds, in wall seconds and in CPU seconds of all cores, which other processes do not affect: of the complete map, of
scoring its tiles, of finding its lines, and of Keras; then the largest difference of the probabilities.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.crack_lines.find_lines import find_lines, searched_area
from pipeline.crack_lines.tracer import load_tracer, tracer_identity
from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.crack_maps.map_files import Job, map_photo
from pipeline.crack_maps.photo_files import PhotoFiles, write_photo
from pipeline.data.images import Pixels
from pipeline.data.photos import read_photo
from pipeline.data.sources import read_image_file
from pipeline.inference.starter import load_starter
from pipeline.models.classifier import Classifier
from pipeline.models.model_files import TRACER_FILE
from pipeline.params import Map
from pipeline.registry.model_lookup import STARTER, found_model

KERAS_BATCH = 32
OVERLAPS = (0.0, 0.5)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Return the wall seconds and the CPU seconds of a call; other processes affect only the first."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def cut(pixels: Pixels, tiles: pd.DataFrame) -> Pixels:
    """Return the tiles of a photo, (n, size, size, 3)."""
    places = tiles[["y", "x", "size"]].to_numpy().tolist()
    return np.stack([pixels[top : top + size, left : left + size] for top, left, size in places])


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--model", default=STARTER, help="`starter`, or the folder of a candidate")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keras_model = (load_starter() if args.model == STARTER else Classifier.load(Path(args.model))).model
    predict = partial(keras_model.predict, batch_size=KERAS_BATCH, verbose=0)
    pixels = read_photo(args.photo.read_bytes()).pixels
    print(f"{args.photo.name}: {pixels.shape[1]} x {pixels.shape[0]} px")
    print("| overlap | tiles | all | CPU | tiles | CPU | lines | CPU | Keras | CPU | Keras/tiles | CPU | difference |")
    print("| --: " * 13 + "|")
    with found_model("none", args.model) as found, tempfile.TemporaryDirectory() as scratch:
        model, tracer = found.load(), load_tracer()
        for overlap in OVERLAPS:
            params = Map(tile_px=256, overlap=overlap, model_mm_per_px=None)
            mapper = CrackMapper(model, params)
            job = Job(found.description, found.identity(), tracer_identity(TRACER_FILE), params, None, False)

            def map_and_write(mapper: CrackMapper = mapper, job: Job = job) -> None:
                files = map_photo(mapper, job, args.photo, read_image_file(args.photo))
                assert isinstance(files, PhotoFiles)  # noqa: S101 - the photo of a benchmark is readable
                write_photo(Path(scratch), "photo", "", files)

            mapped = mapper.map(pixels).tiles
            tiles, ours = cut(pixels, mapped), mapped["probability"].to_numpy()
            searched = searched_area(mapped, model.decision.threshold, pixels.shape[:2])
            theirs = predict(tiles)["probability"]  # warms up, too
            find = partial(find_lines, pixels, searched, tracer)
            calls = (map_and_write, partial(mapper.map, pixels), find, partial(predict, tiles))
            rounds = [[seconds(call) for call in calls] for _ in range(args.rounds)]
            medians = np.median(rounds, axis=0)  # (4 calls, wall and CPU)
            medians[1] -= medians[2]  # of the map without its lines
            shown = " | ".join(f"{wall:.2f} | {cpu:.2f}" for wall, cpu in medians)
            ratios = " | ".join(f"{ratio:.1f}" for ratio in medians[3] / medians[1])
            print(
                f"| {overlap:.0%} | {len(tiles)} | {shown} | {ratios} | {np.abs(ours - theirs).max():.0e} |", flush=True
            )


if __name__ == "__main__":
    main()
