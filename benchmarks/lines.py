"""Measures how well crack lines follow the cracks of real photos.

    python -m benchmarks.lines --uav75 uav75-trainval.zip --cfd cfd-even.zip [--unet-steps N]

Prints tables in Markdown. Of each part of the data: F1, precision and recall of skeletons at a tolerance of 2 px, F1 at
5 px, the error of the total length, false alarms on planking (the share of its length along which a line is drawn), and
CPU seconds per megapixel. `lines` are those of a map with the starter model, tiles included. The settings of the lines
were chosen on UAV75's training part and on drawn cracks; UAV75's validation part and CFD only measure. Compared with a
ridge filter alone, with its best threshold on each part; with the cracked tiles as a mask; and, with --unet-steps, with
the tracer's network trained on masks: of the other data set, and of the other half of the same one.
"""

import argparse
import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter
from skimage import filters, morphology

from pipeline.crack_lines.crack_line import draw_mask
from pipeline.crack_lines.find_lines import find_lines
from pipeline.crack_lines.tracer import Tracer, load_tracer
from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.data.images import Pixels
from pipeline.evaluation.line_scores import TOLERANCE_PX, Mask, line_scores, matches, within
from pipeline.params import Map
from pipeline.registry.model_lookup import STARTER, found_model
from pipeline.training.drawn_cracks import GreyImage

TOLERANCES_PX = (TOLERANCE_PX, 5)
PLANKING = 204  # its grey level in the labels of UAV75
RIDGE_THRESHOLDS = (0.7, 0.9, 1.1, 1.3, 1.5)
MIN_RIDGE_PX = 150  # area of a connected region of a ridge filter
COLUMNS = ("F1 2 px", "precision", "recall", "F1 5 px", "length", "on planking", "CPU s/MP")


@dataclass(frozen=True)
class Example:
    """A photo with the truth about it."""

    name: str
    pixels: Pixels
    crack: Mask
    planking: Mask


def read_uav75(path: Path, part: str) -> list[Example]:
    """Return the photos of a part of UAV75, `train` or `val`, from its archive."""
    examples = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if name.startswith(f"{part}_img/")):
            label_name = f"{part}_lab/{Path(name).stem}.png"
            label = np.asarray(Image.open(archive.open(label_name)).convert("RGBA"))[..., 0]
            pixels = np.asarray(Image.open(archive.open(name)).convert("RGB"))
            examples.append(Example(name, pixels, label == 255, label == PLANKING))
    return examples


def read_cfd(path: Path) -> list[Example]:
    """Return the photos of CrackForest from its archive."""
    examples = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if name.startswith("image/")):
            truth = loadmat(io.BytesIO(archive.read(f"groundTruth/{Path(name).stem}.mat")))["groundTruth"][0, 0]
            crack = truth["Segmentation"] == 2
            pixels = np.asarray(Image.open(archive.open(name)).convert("RGB"))
            examples.append(Example(name, pixels, crack, np.zeros_like(crack)))
    return examples


def scores(predicted: Iterable[Mask], examples: list[Example]) -> dict[str, float]:
    """Return the scores of masks over all examples together."""
    n_planks, n_on_planks = 0, 0
    counts = np.zeros((len(TOLERANCES_PX), 4), np.int64)
    for mask, example in zip(predicted, examples, strict=True):
        found, truth, planks = (morphology.skeletonize(part) for part in (mask, example.crack, example.planking))
        alarms = found & ~within(truth, TOLERANCES_PX[1])
        n_planks += planks.sum()
        n_on_planks += (planks & within(alarms, TOLERANCES_PX[1])).sum()
        counts += [matches(found, truth, tolerance) for tolerance in TOLERANCES_PX]
    strict, tolerant = (line_scores(part) for part in counts)
    n_found, _, n_true, _ = counts[0]
    return {
        "F1 2 px": strict["f1"],
        "precision": strict["precision"],
        "recall": strict["recall"],
        "F1 5 px": tolerant["f1"],
        "length": n_found / n_true - 1,
        "on planking": n_on_planks / n_planks if n_planks else float("nan"),
    }


def ridge_mask(pixels: Pixels, threshold: float) -> Mask:
    """Return where dark ridges are, by a filter on the locally normalised brightness and hysteresis."""
    grey = gaussian_filter(pixels.mean(axis=2), 0.7)
    difference = grey - gaussian_filter(grey, 15)
    spread = np.sqrt(gaussian_filter(difference**2, 15))
    ridges = filters.sato(difference / np.maximum(spread, 4), sigmas=(1.5, 2.5), black_ridges=True)
    mask = filters.apply_hysteresis_threshold(ridges, threshold / 2, threshold)
    return np.asarray(morphology.remove_small_objects(mask, max_size=MIN_RIDGE_PX))


def tile_mask(tiles: pd.DataFrame, shape: tuple[int, int]) -> Mask:
    """Return the tiles that are more likely cracked than not."""
    mask = np.zeros(shape, bool)
    for left, top, size in tiles.loc[tiles["probability"] >= 0.5, ["x", "y", "size"]].to_numpy().tolist():
        mask[top : top + size, left : left + size] = True
    return mask


def print_scores(name: str, find: Callable[[Pixels], Mask], examples: list[Example]) -> None:
    """Print a row: the scores of what `find` finds, and the time that it takes."""
    start = time.process_time()
    masks = [find(example.pixels) for example in examples]
    seconds = (time.process_time() - start) / sum(example.crack.size for example in examples) * 1e6
    row = scores(masks, examples) | {"CPU s/MP": seconds}
    print(f"| {name} | " + " | ".join(f"{row[column]:.2f}" for column in COLUMNS) + " |", flush=True)


def print_header(title: str) -> None:
    """Print the title and the head of a table of scores."""
    print(f"\n{title}\n\n| | " + " | ".join(COLUMNS) + " |\n| --- " + "| --: " * len(COLUMNS) + "|")


def print_lines(parts: dict[str, list[Example]]) -> None:
    """Print the scores of lines, of a ridge filter and of tiles on each part of the data."""
    with found_model("none", STARTER) as found:
        mapper = CrackMapper(found.load(), Map(tile_px=256, overlap=0.0, model_mm_per_px=None))

    def lines(pixels: Pixels) -> Mask:
        return np.asarray(mapper.map(pixels).mask > 0)

    for part, examples in parts.items():
        print_header(f"{part}, {len(examples)} photos")
        print_scores("lines", lines, examples)
        best = max(
            RIDGE_THRESHOLDS,
            key=lambda threshold: scores((ridge_mask(e.pixels, threshold) for e in examples), examples)["F1 2 px"],
        )
        print_scores("ridge filter", partial(ridge_mask, threshold=best), examples)
        print_scores("tiles", lambda pixels: tile_mask(mapper.map(pixels).tiles, pixels.shape[:2]), examples)


def trained_on_masks(examples: list[Example], n_steps: int) -> Callable[[Pixels], Mask]:
    """Return what finds the lines of a photo with the tracer's network, trained on the masks of these photos."""
    from pipeline.training.tracer_fitting import CROP_PX, train, write_tracer  # imports TensorFlow

    rng = np.random.default_rng(0)
    drawn = [
        (
            example.pixels.mean(axis=2).astype(np.uint8),
            morphology.dilation(morphology.skeletonize(example.crack), np.ones((3, 3))).astype(np.uint8),
        )
        for example in examples
    ]

    def crops() -> Iterator[tuple[GreyImage, GreyImage]]:
        while True:
            grey, label = drawn[rng.integers(len(drawn))]
            top, left = (int(rng.integers(side - CROP_PX + 1)) for side in grey.shape)
            cut = np.s_[top : top + CROP_PX, left : left + CROP_PX]
            yield grey[cut], label[cut]

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "tracer.xml"
        write_tracer(train(crops(), n_steps, rng, Path(folder) / "checkpoint"), graph)
        tracer = Tracer(graph)
    return lambda pixels: np.asarray(draw_mask(find_lines(pixels, None, tracer), pixels.shape[:2]) > 0)


def print_trained_on_masks(uav75: list[Example], cfd: list[Example], n_steps: int, tracer: Tracer) -> None:
    """Print the scores of networks that are trained on masks, on photos that they were not trained on."""

    def lines(pixels: Pixels) -> Mask:
        return np.asarray(draw_mask(find_lines(pixels, None, tracer), pixels.shape[:2]) > 0)

    for name, own, other in (("UAV75", uav75, cfd), ("CFD", cfd, uav75)):
        print_header(f"{name}, every second photo")
        print_scores("lines", lines, own[1::2])
        print_scores("trained on masks of the other set", trained_on_masks(other, n_steps), own[1::2])
        print_scores("trained on masks of the other photos", trained_on_masks(own[::2], n_steps), own[1::2])


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uav75", type=Path, required=True, help="archive of its training and validation parts")
    parser.add_argument("--cfd", type=Path, required=True, help="archive of CrackForest")
    parser.add_argument("--photos", type=int, help="of each part of the data; by default all")
    parser.add_argument("--unet-steps", type=int, default=0, help="of training on masks; 0: no such training")
    args = parser.parse_args()
    parts = {f"UAV75 {part}": read_uav75(args.uav75, part)[: args.photos] for part in ("train", "val")}
    parts["CFD"] = read_cfd(args.cfd)[: args.photos]
    print_lines(parts)
    if args.unet_steps:
        uav75 = [*parts["UAV75 train"], *parts["UAV75 val"]]
        print_trained_on_masks(uav75, parts["CFD"], args.unet_steps, load_tracer())


if __name__ == "__main__":
    main()
