"""Limits of the work that an image file can cause, checked before it is decoded, and while it is.

The number of pixels does not limit it: a JPEG can repeat its scans, a TIFF its strips, and headers have any length.
"""

import io
import math
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, TiffTags
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import TiffImageFile

MAX_HEADER_READS = 10_000  # a header of a camera takes some hundreds
READS_PER_TIMING = 32  # some formats are read byte by byte, and the clock is slower than that
MAX_JPEG_SCANS = 100  # progressive JPEGs have about ten
MAX_TIFF_VALUES = 200_000  # of one tag; the largest palette has 196,608
MAX_COVERAGE = 8  # how often strips or tiles may cover a TIFF: once for each band
MAX_TIFF_EXPANSION = 4  # bytes of all compressed strips, relative to the file
# CPU time. Large photos take about 0.05 s a megapixel.
MAX_SECONDS, MAX_SECONDS_PER_PIXEL = 2.0, 1e-6

# The next marker; between scans a JPEG has 0xFF only before 0x00 and in restart markers.
JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
TIFF_LAYOUT = {
    Base.ImageWidth, Base.ImageLength, Base.RowsPerStrip, Base.StripOffsets, Base.StripByteCounts,
    Base.TileWidth, Base.TileLength, Base.TileOffsets, Base.TileByteCounts,
}  # fmt: skip
TIFF_INTEGERS = (TiffTags.SHORT, TiffTags.LONG, TiffTags.LONG8)
TIFF_BYTES = (TiffTags.BYTE, TiffTags.ASCII, TiffTags.UNDEFINED)


class LimitedFile(io.BytesIO):
    """An image file whose header takes a limited number of reads, and header and pixels a limited time each.

    Beyond a limit `read` raises ValueError. Time is CPU time of the thread, so that no image fails on a busy machine.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._max_reads: float = MAX_HEADER_READS
        self._start(MAX_SECONDS)

    def _start(self, seconds: float) -> None:
        self._n_reads, self._seconds = 0, seconds
        self._stops_at_s = time.thread_time() + seconds

    @contextmanager
    def decoding(self, n_pixels: int) -> Iterator[None]:
        """Limit the time of decoding so many pixels inside the block, in this thread, and no longer the reads."""
        self._max_reads = math.inf
        self._start(MAX_SECONDS + n_pixels * MAX_SECONDS_PER_PIXEL)
        yield
        self._stops_at_s = math.inf

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes; all if it is negative."""
        self._n_reads += 1
        if self._n_reads > self._max_reads:
            raise ValueError(f"its header has more than {MAX_HEADER_READS:,} parts")
        if self._n_reads % READS_PER_TIMING == 0 and time.thread_time() > self._stops_at_s:
            raise ValueError(f"decoding it takes more than {self._seconds:.0f} s")
        return super().read(size)


def check_header(content: bytes) -> None:
    """Raise ValueError if opening the image, which decodes nothing, would already take too much time or memory."""
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0"):
        _check_tiff_tags(content)


def check_work(image: Image.Image, content: bytes, max_pixels: float) -> None:
    """Raise ValueError if decoding an opened image would take more work than its size explains."""
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MAX_JPEG_SCANS:
        _check_jpeg_scans(content)
    if isinstance(image, TiffImageFile):
        _check_tiff_layout(image, len(content), max_pixels)


def _check_jpeg_scans(content: bytes) -> None:
    position, n_markers, n_scans = 2, 0, 0
    while (found := JPEG_MARKER.search(content, position)) and found[1] != b"\xd9":  # the end of the image
        n_markers += 1
        n_scans += found[1] == b"\xda"
        if n_scans > MAX_JPEG_SCANS or n_markers > MAX_HEADER_READS:
            raise ValueError(f"it has more than {MAX_JPEG_SCANS} scans")
        has_length = found[1] >= b"\xc0"
        position = found.end() + (int.from_bytes(content[found.end() : found.end() + 2]) if has_length else 0)


def _check_tiff_tags(content: bytes) -> None:
    """Check how many values each tag has, and the types of those that Pillow and libtiff both read."""
    order, is_big = "<" if content.startswith(b"II") else ">", content[2] == 43
    number, n_tags, entry = ("Q", "Q", "HHQ8x") if is_big else ("L", "H", "HHL4x")
    start = struct.unpack_from(order + number, content, 8 if is_big else 4)[0]
    n = min(struct.unpack_from(order + n_tags, content, start)[0], MAX_HEADER_READS)
    start += struct.calcsize(order + n_tags)
    size = struct.calcsize(order + entry)
    table = content[start : start + n * size]
    for tag, kind, n_values in struct.iter_unpack(order + entry, table[: len(table) // size * size]):
        if (n_values > MAX_TIFF_VALUES and kind not in TIFF_BYTES) or (
            tag in TIFF_LAYOUT and (kind not in TIFF_INTEGERS or n_values > MAX_TIFF_VALUES)
        ):
            raise ValueError(f"its tag {tag} has {n_values:,} values of type {kind}")


def _check_tiff_layout(image: TiffImageFile, n_bytes: int, max_pixels: float) -> None:
    tags = image.tag_v2
    width, height = tags[Base.ImageWidth], tags[Base.ImageLength]
    parts = [tile.extents for tile in image.tile if tile.extents]
    n_covered = sum((right - left) * (bottom - top) for left, top, right, bottom in parts)
    if n_covered > MAX_COVERAGE * width * height:
        raise ValueError(f"its strips cover it {n_covered // (width * height):,} times")
    tile_width, tile_height = tags.get(Base.TileWidth, 1), tags.get(Base.TileLength, 1)
    # libtiff decodes the whole of each tile
    if math.ceil(width / tile_width) * tile_width * math.ceil(height / tile_height) * tile_height > max_pixels:
        raise ValueError(f"with its tiles of {tile_width} x {tile_height} px it is too large")
    n_packed = sum(tags.get(Base.StripByteCounts, ())) + sum(tags.get(Base.TileByteCounts, ()))
    if n_packed > MAX_TIFF_EXPANSION * n_bytes and image.info["compression"] != "raw":
        raise ValueError(f"its strips have {n_packed:,} bytes, the file {n_bytes:,}")
