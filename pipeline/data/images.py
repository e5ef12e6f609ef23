"""Decode images, compute their statistics, and read packed data sets."""

import io
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base as Tag

from pipeline.data.bit_depth import FEW_BITS_OF_16, grey_of_16_bits, is_nearly_black
from pipeline.data.image_limits import LimitedFile, check_header, check_work
from pipeline.data.image_names import OVERLAY_COMMENT, not_read, not_read_content
from pipeline.safe_text import on_texts, text_of_cell

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB
Sizes = npt.NDArray[np.int64]  # (n, 2): height, width in pixels

THUMBNAIL_SIZE_PX = 64
STRIP_PX = 256  # rows of a photo that are changed at once: Pillow would keep copies of a large one
# Other formats of Pillow start external programs (EPS), or are not used for photos.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks that can say how an image is turned
DARK_BELOW, BRIGHT_FROM = 5, 251  # grey levels; darker and brighter pixels hold no information
IMAGES_FILE = "images.bin"
INVENTORY_FILE = "inventory.parquet"
QUARANTINE_FILE = "quarantine.csv"
MISFIT = "its mask does not fit: "  # begins such a reason in the quarantine

NOT_AN_IMAGE = "not an image"
MAX_PIXELS = 200_000_000  # where no setting says otherwise: of the largest phone cameras, 600 MB decoded
# Pillow's own limit is global and names no setting; `open_image` and `stored_size` have theirs.
Image.MAX_IMAGE_PIXELS = None


class UnreadableImageError(Exception):
    """The bytes are no image that can be decoded completely; the message is the reason."""


@contextmanager
def _unreadable_where_pillow_fails(content: bytes = b"") -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise UnreadableImageError(not_read_content(content) or NOT_AN_IMAGE) from None
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make Pillow raise RuntimeError, struct.error and more
        raise UnreadableImageError(str(error) or type(error).__name__) from None


def open_image(content: bytes, max_pixels: int = MAX_PIXELS, *, remedy: str = "Divide it") -> Image.Image:
    """Decode `content` completely, in any mode, as stored (not yet turned upright).

    Raises UnreadableImageError if it is not an image, truncated, the preview of a raw photo, an overlay of `cracks map`
    or, by its header, larger than `max_pixels` (`remedy` says what helps); also if it would take more work than an
    image of its size (`image_limits`).
    """
    with _unreadable_where_pillow_fails(content):
        image, file = _read_header(content, max_pixels, remedy)
        is_cut_to_8_bits = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
        with file.decoding(image.width * image.height):
            image.load()
        if is_cut_to_8_bits and image.mode in ("RGB", "RGBA") and is_nearly_black(image):
            raise UnreadableImageError(FEW_BITS_OF_16)
        return image


def _read_header(content: bytes, max_pixels: int, remedy: str) -> tuple[Image.Image, LimitedFile]:
    check_header(content)
    file = LimitedFile(content)
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > max_pixels:
        n_megapixels = max_pixels // 1_000_000
        raise UnreadableImageError(
            f"{image.width} x {image.height} px is more than {n_megapixels} megapixels. {remedy}"
        )
    check_work(image, content, max_pixels)
    tags = getattr(image, "tag_v2", {})  # of a TIFF, which a raw photo is too
    if Tag.DNGVersion in tags or tags.get(Tag.NewSubfileType, 0) & 1:  # the first picture is a preview of another
        raise UnreadableImageError(not_read("raw"))
    if image.info.get("comment") == OVERLAY_COMMENT:
        raise UnreadableImageError("a picture that `cracks map` has drawn, not a photo")
    return image, file


def stored_size(content: bytes, max_pixels: int = MAX_PIXELS, *, remedy: str = "Divide it") -> tuple[int, int]:
    """Return (height, width) in pixels of the upright image, from the header: nothing is decoded.

    Raises UnreadableImageError as `open_image` does, except where the pixels are damaged.
    """
    with _unreadable_where_pillow_fails(content):
        image, _ = _read_header(content, max_pixels, remedy)
        width, height = image.size
        described = Image.open(LimitedFile(_png_of_metadata(content))) if image.format == "PNG" else image
        is_on_its_side = described.getexif().get(Tag.Orientation) in (5, 6, 7, 8)
        # for a TIFF, Pillow returns the upright size already
        return (width, height) if is_on_its_side and image.format != "TIFF" else (height, width)


def _png_of_metadata(content: bytes) -> bytes:
    """Return a PNG of one pixel with the metadata of another, which Pillow would decode for those behind the pixels."""
    kept, position = [], len(PNG_SIGNATURE)
    while (kind := content[position + 4 : position + 8]) and kind != b"fdAT":  # further frames are not read
        end = position + 12 + int.from_bytes(content[position : position + 4])
        if kind in PNG_METADATA:
            kept.append(content[position:end])
        position = end
    pixel = encode_png(np.zeros((1, 1, 3), np.uint8))
    start = pixel.index(b"IDAT") - 4
    return b"".join([pixel[:start], *kept, pixel[start:]])


def to_pixels(image: Image.Image) -> Pixels:
    """Turn the image upright, and return it as RGB, uint8, shape (height, width, 3). Raises UnreadableImageError."""
    with _unreadable_where_pillow_fails():
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a large photo takes much memory
        if image.mode in ("I", "F"):
            raise UnreadableImageError(
                "its pixels have a sign or 32 bits, so that the values of black and white are unknown. Save it with 8 "
                "or 16 bits"
            )
        is_plain_cmyk = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
        if image.mode.startswith("I;16"):  # 16-bit grey, which `convert` would clip to white
            image = Image.fromarray(grey_of_16_bits(np.asarray(image), getattr(image, "tag_v2", {})))
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, STRIP_PX):
            strip = image.crop((0, top, image.width, min(top + STRIP_PX, image.height)))
            strip.info.pop("transparency", None)  # of a palette; Pillow warns where it is lost
            if is_plain_cmyk:
                strip = ImageChops.invert(strip)  # Pillow takes every such file for Adobe's, which stores inks inverted
            pixels[top : top + STRIP_PX] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
        return pixels


def decode(content: bytes) -> Pixels:
    """Decode to upright RGB, uint8, shape (height, width, 3). Raises UnreadableImageError."""
    return to_pixels(open_image(content))


def encode_png(pixels: Pixels) -> bytes:
    """Return pixels, uint8, (height, width, 3) or (height, width), as a PNG file; equal pixels give equal files."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(pixels: Pixels) -> Pixels:
    """Return the grey thumbnail for the fingerprint: uint8, shape (64, 64), means of areas."""
    grey = Image.fromarray(pixels).convert("L")
    return np.asarray(grey.resize((THUMBNAIL_SIZE_PX, THUMBNAIL_SIZE_PX), Image.Resampling.BOX))


def image_statistics(pixels: Pixels) -> dict[str, float]:
    """Return the statistics of an image's grey levels 0..255.

    brightness (mean), contrast (standard deviation), sharpness (variance of the Laplacian, Pech-Pacheco et al., Diatom
    autofocusing in brightfield microscopy, 2000), dark_share and bright_share (of nearly black and white pixels).
    """
    grey = Image.fromarray(pixels).convert("L")
    shares = np.array(grey.histogram()) / (grey.width * grey.height)  # (256,)
    levels = np.arange(256)
    brightness = float(shares @ levels)
    g = np.asarray(grey, np.float32)
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    return {
        "brightness": brightness,
        "contrast": float(np.sqrt(shares @ (levels - brightness) ** 2)),
        "sharpness": float(laplacian.var()) if laplacian.size else 0.0,
        "dark_share": float(shares[:DARK_BELOW].sum()),
        "bright_share": float(shares[BRIGHT_FROM:].sum()),
    }


def read_quarantine(folder: Path) -> pd.DataFrame:
    """Return the files that `ingest` did not use: columns batch, path, reason, is_image and is_left_out.

    `is_image` is true of images that can be read, `is_left_out` of files that are no images of the user's, such as
    notes and thumbnails; older tables lack it.
    """
    table = pd.read_csv(folder / QUARANTINE_FILE, keep_default_na=False)  # a file may be named "NA"
    table = table.assign(is_left_out=table.get("is_left_out", False))
    return on_texts(table, text_of_cell).astype({"is_image": bool, "is_left_out": bool})


class Images(Protocol):
    """A sequence of images that are decoded on access."""

    @property
    def sizes(self) -> Sizes:
        """(height, width) of each image in pixels, shape (n, 2)."""

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, shape (height, width, 3)."""


@dataclass(frozen=True)
class EncodedImages:
    """Image files in memory, which can be sent to another machine."""

    contents: Sequence[bytes]
    sizes: Sizes

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, shape (height, width, 3)."""
        return decode(self.contents[position])


class PackedImages:
    """A data set as `ingest` writes it: one file of all images, fast to hash and copy, and an inventory of them."""

    def __init__(self, folder: Path) -> None:
        self.inventory: pd.DataFrame = pd.read_parquet(folder / INVENTORY_FILE)
        self.sizes: Sizes = self.inventory[["height", "width"]].to_numpy()
        self._offsets = self.inventory["offset"].to_numpy()
        self._n_bytes = self.inventory["n_bytes"].to_numpy()
        with (folder / IMAGES_FILE).open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def content(self, row: int) -> bytes:
        """Return the original bytes of inventory row `row`."""
        start = int(self._offsets[row])
        return self._bytes[start : start + int(self._n_bytes[row])]

    def pixels(self, position: int) -> Pixels:
        """Return inventory row `position` decoded: RGB, uint8, shape (height, width, 3)."""
        return decode(self.content(position))


class LabelledImages:
    """Rows of the manifest with their images, which may come from several data sets."""

    def __init__(self, rows: pd.DataFrame, datasets: Path) -> None:
        """Set rows with the columns dataset, row and label; `datasets` has a folder for each data set."""
        self.rows = rows.reset_index(drop=True)
        self._packed = {name: PackedImages(datasets / str(name)) for name in rows["dataset"].unique()}
        self._places = list(zip(self.rows["dataset"], self.rows["row"], strict=True))
        self.sizes: Sizes = np.array([self._packed[name].sizes[row] for name, row in self._places]).reshape(-1, 2)
        self.labels: npt.NDArray[np.bool_] = (self.rows["label"] == "crack").to_numpy()  # True for crack
        self.whole: LabelledImages = self  # those that these are a part of, and where in it
        self.positions = np.arange(len(self.rows))

    def part(self, chosen: npt.NDArray[np.bool_]) -> "LabelledImages":
        """Return the images of a mask, (n,). What a training caches of all of them, it does not compute again."""
        part = copy(self)
        part.rows = self.rows[chosen].reset_index(drop=True)
        part.sizes, part.labels, part.positions = self.sizes[chosen], self.labels[chosen], self.positions[chosen]
        part._places = [self._places[position] for position in np.flatnonzero(chosen)]
        return part

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, shape (height, width, 3)."""
        name, row = self._places[position]
        return self._packed[name].pixels(row)


class ImageSubset:
    """A sequence of some images of another sequence."""

    def __init__(self, images: Images, positions: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self.sizes: Sizes = images.sizes[np.asarray(positions, np.int64)]
        self._images = images
        self._positions = positions

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, shape (height, width, 3)."""
        return self._images.pixels(int(self._positions[position]))


def batches_by_size(sizes: Sizes, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Return positions 0..n-1 in batches of images of equal size, which can be stacked; each batch is ascending."""
    runs = [np.asarray(run) for run in pd.DataFrame(sizes).groupby([0, 1]).indices.values()]
    return [run[start : start + batch_size] for run in runs for start in range(0, len(run), batch_size)]
