"""Scores of crack lines: skeletons are compared with a tolerance, over all images together."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from pipeline.crack_lines.crack_line import draw_mask
from pipeline.crack_lines.find_lines import find_lines
from pipeline.crack_lines.tracer import Tracer
from pipeline.data.images import Images, Pixels
from pipeline.errors import CracksError
from pipeline.training.drawn_cracks import IGNORED, draw_example, grey_image

Mask = npt.NDArray[np.bool_]  # (height, width)

TOLERANCE_PX = 2
N_DRAWN = 64  # the difference of F1 of two tracers then has a standard deviation of 0.02
DRAWN_PX = 256


class DrawnImage(NamedTuple):
    """An image on which cracks, and what is easily taken for cracks, may be drawn."""

    pixels: Pixels
    crack: Mask
    ignored: Mask  # where a crack is too faint to be found


def within(mask: Mask, distance_px: float) -> Mask:
    """Return the pixels that are at most `distance_px` from one of a mask."""
    return np.asarray(distance_transform_edt(~mask) <= distance_px) if mask.any() else np.zeros_like(mask)


def matches(found: Mask, truth: Mask, tolerance_px: float) -> npt.NDArray[np.int64]:
    """Return how many pixels a skeleton has, how many are near the true one, and the same of that one, (4,)."""
    near_truth, near_found = within(truth, tolerance_px), within(found, tolerance_px)
    return np.array([found.sum(), (found & near_truth).sum(), truth.sum(), (truth & near_found).sum()])


def line_scores(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return F1, precision and recall, 0..1, of the sum of `matches`; 0 where nothing is found or true."""
    precision, recall = (float(near / max(n, 1)) for n, near in counts.reshape(2, 2))
    return {"f1": 2 * precision * recall / max(precision + recall, 1e-9), "precision": precision, "recall": recall}


def drawn_images(images: Images) -> list[DrawnImage]:
    """Return N_DRAWN random ones of the intact images with drawn cracks; the same images give the same drawings.

    Raises CracksError if there is no image.
    """
    if not len(images.sizes):
        raise CracksError(
            "The test side has no intact image on which cracks can be drawn to measure crack lines. Add intact images, "
            "or assign photos that have some to it, by split.photos in params.yaml."
        )
    rng = np.random.default_rng(0)
    drawn = []
    for position in rng.integers(len(images.sizes), size=N_DRAWN).tolist():
        picture, label = draw_example(grey_image(images.pixels(position)), DRAWN_PX, rng)
        drawn.append(DrawnImage(np.repeat(picture[..., None], 3, axis=2), label == 1, label == IGNORED))
    return drawn


def drawn_line_scores(tracer: Tracer, drawn: Iterable[DrawnImage]) -> dict[str, float]:
    """Return F1, precision and recall, 0..1, at 2 px of the lines that are found in drawn images."""
    from skimage.morphology import skeletonize  # the import takes a second

    counts = np.zeros(4, np.int64)
    for image in drawn:
        found = skeletonize(draw_mask(find_lines(image.pixels, None, tracer), image.crack.shape) > 0)
        near_faint_alone = within(image.ignored, TOLERANCE_PX) & ~within(image.crack, TOLERANCE_PX)
        counts += matches(found & ~near_faint_alone, skeletonize(image.crack), TOLERANCE_PX)
    return line_scores(counts)
