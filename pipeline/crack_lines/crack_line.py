"""A crack as a line, and the mask of the lines of a photo."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Points = npt.NDArray[np.float64]  # (n, 2), x and y in pixels of the upright photo; the centres of pixels are integers
Widths = npt.NDArray[np.float64]  # (n,), px


@dataclass(frozen=True)
class CrackLine:
    """The line along which a crack runs, with its width.

    Attributes:
        points: its course, (n, 2) with n >= 2, x and y in pixels of the photo as it is displayed; the centre of the
            pixel at the top left is (0, 0).
        widths_px: width at each point, (n,).
        width_low_px: lower end of the 90 % interval of the median width.
        width_high_px: upper end of it.
        confidence: mean probability of a crack along the line, 0..1.
    """

    points: Points
    widths_px: Widths
    width_low_px: float
    width_high_px: float
    confidence: float

    @property
    def length_px(self) -> float:
        """The length along the line."""
        return float(np.hypot(*np.diff(self.points, axis=0).T).sum())

    @property
    def median_width_px(self) -> float:
        """The median of the widths."""
        return float(np.median(self.widths_px))

    @property
    def p95_width_px(self) -> float:
        """The 95th percentile of the widths."""
        return float(np.quantile(self.widths_px, 0.95))


def normals(directions: Points) -> Points:
    """Return the unit vectors at right angles to directions, (n, 2)."""
    return np.asarray(directions[:, ::-1] * [-1, 1] / np.maximum(np.hypot(*directions.T), 1e-9)[:, None])


def draw_mask(lines: Sequence[CrackLine], shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the lines as a mask of (height, width): 255 on a crack, 0 elsewhere; each line as wide as its crack."""
    mask = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(mask)
    for line in lines:
        odd = 2 * round(max(line.median_width_px - 1, 0) / 2) + 1  # so that the line is its middle
        draw.line(line.points.ravel().tolist(), 255, odd, joint="curve")
    return np.asarray(mask)
