"""Makes copies of images as people do: saved again, brightened, resized, mirrored, turned, cropped."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.data.fingerprints import Fingerprints, fingerprint
from pipeline.data.images import Pixels, decode, thumbnail
from pipeline.data.near_duplicates import Measure, Positions
from pipeline.data.pixel_agreement import Greys, Values, agreements
from pipeline.params import Copies

LIMITS = Copies(min_correlation=0.55)
TURNS = Image.Transpose


def altered(
    *,
    quality: int = 95,
    brightness: float = 1,
    scale: float = 1,
    turn: Image.Transpose | None = None,
    cropped_px: int = 0,  # at the left and at the top
) -> Callable[[bytes], bytes]:
    """Return a function from the bytes of an image to those of an altered copy, a JPEG."""

    def alter(content: bytes) -> bytes:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = image.crop((cropped_px, cropped_px, image.width, image.height))
        if scale != 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)))
        if brightness != 1:
            image = ImageEnhance.Brightness(image).enhance(brightness)
        if turn is not None:
            image = image.transpose(turn)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    return alter


ALTERATIONS = {
    "saved again, JPEG quality 90": altered(quality=90),
    "saved again, 70": altered(quality=70),
    "saved again, 50": altered(quality=50),
    "brightness x 1.15": altered(brightness=1.15),
    "brightness x 0.85": altered(brightness=0.85),
    "size x 0.75": altered(scale=0.75),
    "size x 1.33": altered(scale=1.33),
    "mirrored left-right": altered(turn=TURNS.FLIP_LEFT_RIGHT),
    "mirrored up-down": altered(turn=TURNS.FLIP_TOP_BOTTOM),
    "turned by 90 degrees": altered(turn=TURNS.ROTATE_90),
    "turned by 180 degrees": altered(turn=TURNS.ROTATE_180),
    "turned by 270 degrees": altered(turn=TURNS.ROTATE_270),
    "mirrored left-right, 70": altered(turn=TURNS.FLIP_LEFT_RIGHT, quality=70),
    "mirrored up-down, 50": altered(turn=TURNS.FLIP_TOP_BOTTOM, quality=50),
    "brightness x 1.15, 70": altered(brightness=1.15, quality=70),
    "brightness x 0.85, 50": altered(brightness=0.85, quality=50),
    "size x 0.75, 50": altered(scale=0.75, quality=50),
    "size x 0.75, brightness x 1.15, turned by 90, 50": altered(
        scale=0.75, brightness=1.15, turn=TURNS.ROTATE_90, quality=50
    ),
    "shifted crop, 2 px": altered(cropped_px=2),
    "shifted crop, 4 px": altered(cropped_px=4),
}


def new_piece(content: bytes, seed: int) -> Image.Image:
    """Return another image of the same concrete: a square cut out at random and enlarged to the former size."""
    rng = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(content)).convert("RGB")
    side = rng.uniform(0.55, 0.85) * image.width
    left, top = rng.uniform(0, image.width - side, 2)
    return image.resize(image.size, Image.Resampling.BICUBIC, (left, top, left + side, top + side))


def read_images(archive: Path) -> dict[str, bytes]:
    """Return the JPEG files of an archive by name, in order."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist() if name.lower().endswith(".jpg")}


def thumbnail_of(content: bytes) -> Pixels:
    """Return an image's grey thumbnail, uint8, shape (64, 64)."""
    return thumbnail(decode(content))


def fingerprint_of(content: bytes) -> Fingerprints:
    """Return an image's fingerprint, int8, shape (32, 32)."""
    return fingerprint(thumbnail_of(content))


def fingerprint_only(pairs: Positions, symmetries: Positions) -> Values:
    """Confirm every pair whose fingerprints correlate."""
    return np.ones(len(pairs), np.float32)


def measure_of(greys: Greys) -> Measure:
    """Return the function that compares the pixels of thumbnails, shape (n, 64, 64)."""

    def measure(pairs: Positions, symmetries: Positions) -> Values:
        chunks = np.array_split(np.arange(len(pairs)), max(1, len(pairs) // 256))
        return np.concatenate(
            [
                agreements(greys[pairs[chunk, 0]], greys[pairs[chunk, 1]], symmetries[chunk])
                for chunk in chunks
                if len(chunk)
            ]
            or [np.empty(0, np.float32)]
        )

    return measure
