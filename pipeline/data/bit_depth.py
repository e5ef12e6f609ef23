"""Images of 16 bits that use fewer: without care they are read as nearly black, and a crack in them is not seen."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ExifTags import Base as Tag

BIT_DEPTHS = (8, 10, 12, 14, 16)  # of cameras
FEW_BITS_OF_16 = "its colours use few of 16 bits, and would be read as nearly black. Save it with 8 bits a colour"
WHITE_IS_ZERO = 0


def is_nearly_black(image: Image.Image) -> bool:
    """Return whether colours of 16 bits, of which Pillow has kept the upper 8, had 14 or fewer."""
    return bool(np.asarray(image)[..., :3].max() < 2 ** (14 - 8))


def grey_of_16_bits(values: npt.NDArray[np.uint16], tags: Mapping[int, Any]) -> npt.NDArray[np.uint8]:
    """Return 16-bit grey values as 8 bits, with the tags of their TIFF, if it is one.

    Cameras store 10, 12 or 14 bits in files of 16, often without saying so; read as 16 bits they are nearly black, and
    a crack is not seen. So white is the largest value of the smallest of these depths that holds every value and the
    maximum that the TIFF states (65535, which programs write by default, says nothing). Values are never stretched to
    their own range: it differs from tile to tile, and contrast is what a model judges by. A photo of 16 bits without a
    value above a quarter of white is brightened by this, which shows more of it, not less.
    """
    stated = [tags[tag] for tag in (Tag.MaxSampleValue, Tag.SMaxSampleValue) if tag in tags]
    maxima = [2 ** int(np.max(tags.get(Tag.BitsPerSample, 16))) - 1, *(int(np.max(value)) for value in stated)]
    peak = max([int(values.max()), *(value for value in maxima if value < 2**16 - 1)])
    depth = next(bits for bits in BIT_DEPTHS if peak < 2**bits)
    grey = (values >> (depth - 8)).astype(np.uint8)
    is_inverted = tags.get(Tag.PhotometricInterpretation) == WHITE_IS_ZERO  # which Pillow sees to at 8 bits alone
    return 255 - grey if is_inverted else grey
