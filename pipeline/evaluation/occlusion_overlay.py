"""The overlay of an occlusion map over its image, apart from the map: no change of style computes maps again."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import Pixels

FOR_CRACK, AGAINST_CRACK = (230, 60, 20), (30, 110, 230)  # RGB
MAX_OPACITY = 0.75


def occlusion_overlay(pixels: Pixels, occlusion_map: npt.NDArray[np.float64]) -> Pixels:
    """Return the image in grey with its occlusion map: red for a crack, blue against, the strongest cell most opaque.

    The map, (rows, columns), is in logits, positive for a crack.
    """
    height, width, _ = pixels.shape
    strength = occlusion_map / max(float(np.abs(occlusion_map).max()), np.finfo(float).tiny)  # -1..1
    drawn = Image.fromarray(strength.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    opacity = np.asarray(drawn)[..., None] * MAX_OPACITY  # (height, width, 1)
    colour = np.where(opacity > 0, np.array(FOR_CRACK), np.array(AGAINST_CRACK))
    grey = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    blended: Pixels = (grey * (1 - np.abs(opacity)) + colour * np.abs(opacity)).round().astype(np.uint8)
    return blended
