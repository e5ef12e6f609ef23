"""Measures how well the width of crack lines is measured, on cracks of known width.

    python -m benchmarks.line_widths --intact metu.zip sdnet.zip [--cracks 600]

Draws cracks of one width each on intact images. Prints tables in Markdown: how many are found, the errors of their
widths, and how often the 90 % interval holds; the errors of medians and 95th percentiles of these cracks, and of cracks
whose width varies along their course; then the calibration for `pipeline.crack_lines.widths`, from cracks drawn on the
other half of the images.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.crack_lines.crack_line import Points, Widths
from pipeline.crack_lines.find_lines import find_lines
from pipeline.crack_lines.tracer import Tracer, load_tracer
from pipeline.crack_lines.widths import CALIBRATION
from pipeline.data.images import Pixels
from pipeline.training.build_tracer import read_intact
from pipeline.training.drawn_cracks import GreyImage, as_photographed, crack_course, draw_line, smooth_noise

WIDTHS_PX = (0.5, 20.0)  # of cracks that are drawn, log-uniform
WIDTH_CLASSES_PX = (0.5, 1, 2, 3, 5, 8, 12, 20)
VARIATION = 0.25  # standard deviation of the logarithm of the width along a crack whose width varies
VARIED_POINTS = 3  # of its course, over which the width is smooth: 12 px
DRAWN_PX = 320  # side of a drawn photo
FINER = 4  # times as fine as to train, where the width of a drawn line may be a tenth of a pixel larger
MIN_CALIBRATED = 30  # drawn cracks for a fitted width
ERRORS = [f"{of}: {error}" for of in ("median", "95th") for error in ("bias", "median error", "90 % of errors")]
MAX_OFFSET_PX = 3.0  # between a drawn crack and the line that is taken for it, in the middle


def drawn_photo(
    image: GreyImage, width_px: float, variation: float, rng: np.random.Generator
) -> tuple[Pixels, Points, Widths]:
    """Return a photo of intact concrete with a crack, its course, and its widths there, around `width_px`.

    The course has points every half pixel, between which it was drawn with linearly changing widths.
    """
    concrete = np.asarray(Image.fromarray(image).resize((DRAWN_PX, DRAWN_PX)), np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    start = DRAWN_PX / 2 - 0.45 * DRAWN_PX * np.array([np.cos(angle), np.sin(angle)])
    course = crack_course(start, angle, 0.9 * DRAWN_PX, 0.04, rng)
    widths = np.full(len(course), width_px)
    if variation:
        widths *= np.exp(variation * smooth_noise(len(course), VARIED_POINTS, rng))
    large = draw_line(FINER * (course + 0.5) - 0.5, FINER * widths, FINER * DRAWN_PX)
    cover = large.reshape(DRAWN_PX, FINER, DRAWN_PX, FINER).mean(axis=(1, 3))
    blurred = gaussian_filter(concrete * (1 - rng.uniform(0.25, 0.8) * cover), rng.uniform(0.3, 0.9))
    known, between = np.arange(len(course)), np.arange(0, len(course) - 1, 1 / 8)
    x, y, fine_widths = (np.interp(between, known, values) for values in (*course.T, widths))
    return np.repeat(as_photographed(blurred, rng)[..., None], 3, axis=2), np.stack([x, y], axis=1), fine_widths


def measured_widths(
    images: list[GreyImage], n_cracks: int, tracer: Tracer, rng: np.random.Generator, variation: float = 0
) -> pd.DataFrame:
    """Return the true width of each drawn crack, and the width, low and high of its line; nan where none is found.

    `true` is the median and `true_p95` the 95th percentile of the true widths along the line.
    """
    rows = []
    for _ in range(n_cracks):
        width = float(np.exp(rng.uniform(*np.log(WIDTHS_PX))))
        pixels, course, widths = drawn_photo(images[rng.integers(len(images))], width, variation, rng)
        rows.append((width, np.nan, np.nan, np.nan, np.nan, np.nan))
        for line in find_lines(pixels, None, tracer):  # the longest first
            offsets = np.hypot(*(line.points[:, None] - course).transpose(2, 0, 1))
            if np.median(offsets.min(axis=1)) <= MAX_OFFSET_PX:
                truth = widths[offsets.argmin(axis=1)]
                measured = (line.median_width_px, line.width_low_px, line.width_high_px, line.p95_width_px)
                rows[-1] = (float(np.median(truth)), *measured, float(np.quantile(truth, 0.95)))
                break
    return pd.DataFrame(rows, columns=["true", "width", "low", "high", "p95", "true_p95"])


def print_widths(cracks: pd.DataFrame) -> None:
    """Print the errors of widths by true width, and the quantiles of the true widths by measured one."""
    print("\n| true width, px | drawn | found | bias | median error | 90 % of errors | interval holds | under 2 px |")
    print("| --- " + "| --: " * 7 + "|")
    of_class = [cracks[cracks["true"].between(*ends)] for ends in pairwise(WIDTH_CLASSES_PX)]
    names = [f"{low:g} to {high:g}" for low, high in pairwise(WIDTH_CLASSES_PX)]
    for name, drawn in zip([*names, "2 to 20"], [*of_class, cracks[cracks["true"] >= 2]], strict=True):
        found = drawn.dropna(subset="width")
        error = found["width"] - found["true"]
        holds = found["true"].between(found["low"], found["high"]).mean()
        print(
            f"| {name} | {len(drawn)} | {len(found) / len(drawn):.0%} | {error.median():+.2f} | "
            f"{error.abs().median():.2f} | {error.abs().quantile(0.9):.2f} | {holds:.0%} | "
            f"{(found['width'] < 2).mean():.0%} |"
        )


def print_percentiles(title: str, cracks: pd.DataFrame) -> None:
    """Print the errors of medians and 95th percentiles of cracks that are found, by true 95th percentile."""
    print(f"\n{title}\n\n| true 95th percentile, px | cracks | " + " | ".join(ERRORS) + " | interval holds |")
    print("| --- " + "| --: " * 8 + "|")
    for low, high in [*pairwise(WIDTH_CLASSES_PX[2:]), (2, 20)]:
        found = cracks[cracks["true_p95"].between(low, high)]
        errors = [found["width"] - found["true"], found["p95"] - found["true_p95"]]
        shown = [
            f"{error.median():+.2f} | {error.abs().median():.2f} | {error.abs().quantile(0.9):.2f}" for error in errors
        ]
        holds = found["true"].between(found["low"], found["high"]).mean()
        print(f"| {low:g} to {high:g} | {len(found)} | {shown[0]} | {shown[1]} | {holds:.0%} |")


def print_calibration(cracks: pd.DataFrame) -> None:
    """Print the quantiles of the true width of cracks by fitted width, as they stand in the code."""
    found = cracks.dropna(subset="width")
    fitted = np.interp(found["width"], CALIBRATION[:, 2], CALIBRATION[:, 0])
    print("\n| fitted width, px | cracks | 5 % | 50 % | 95 % |\n| --: | --: | --: | --: | --: |")
    for width in CALIBRATION[:, 0]:
        distance = np.abs(np.log(fitted / width))
        similar = distance <= max(0.08, np.sort(distance)[MIN_CALIBRATED])
        low, middle, high = (found["true"][similar] / fitted[similar]).quantile([0.05, 0.5, 0.95]) * width
        print(f"| {width:g} | {similar.sum()} | {low:.2f} | {middle:.2f} | {high:.2f} |")


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intact", type=Path, nargs="+", required=True, help="archives with intact images")
    parser.add_argument("--cracks", type=int, default=600, help="that are drawn")
    args = parser.parse_args()
    tracer, images, rng = load_tracer(), read_intact(args.intact), np.random.default_rng(1)
    rng.shuffle(images)
    cracks = measured_widths(images[::2], args.cracks, tracer, rng)
    print_widths(cracks)
    print_percentiles("cracks of one width", cracks)
    varied = measured_widths(images[::2], args.cracks, tracer, np.random.default_rng(2), VARIATION)
    print_percentiles("cracks whose width varies", varied)
    print_calibration(measured_widths(images[1::2], args.cracks, tracer, rng))


if __name__ == "__main__":
    main()
