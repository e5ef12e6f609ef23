"""Writes image files that cause far more work than an image of their size."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def jpeg_of_scans(n, size_px=64):
    """A progressive JPEG whose last scan, of a few bytes, occurs n times; 9 others come before."""
    buffer = io.BytesIO()
    Image.new("L", (size_px, size_px), 120).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * n + content[-2:]


def jpeg_of_segments(segments, size_px=64):
    """A JPEG with more segments, at its start."""
    buffer = io.BytesIO()
    Image.new("RGB", (size_px, size_px), (90, 90, 90)).save(buffer, "JPEG")
    content = buffer.getvalue()
    return content[:2] + segments + content[2:]


def chunk(kind, data=b""):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(width, height, before=b"", pixels=None, after=b""):
    """A grey PNG with more chunks before and after its pixels."""
    header = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    if pixels is None:
        pixels = zlib.compress(bytes((width + 1) * height), 9)
    return PNG + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND")


def exif_of(orientation):
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHLHHL", 1, 274, 3, 1, orientation, 0, 0)


def tiff(width, height, pixels, compression=1, **tags):
    """A grey TIFF; `tags` replace or add such as t273=[8, 8], or t273=(type, count, bytes)."""
    values = {"t256": [width], "t257": [height], "t258": [8], "t259": [compression], "t262": [1], "t277": [1], **tags}
    numbers = sorted(int(name[1:]) for name in values)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(numbers))
    end = len(head) + 12 * len(numbers) + 4
    entries, extra = b"", b""
    n_extra = sum(4 * len(v) for v in values.values() if isinstance(v, list) and len(v) > 1)
    n_extra += sum(len(v[2]) for v in values.values() if isinstance(v, tuple) and len(v[2]) > 4)
    for number in numbers:
        value = values[f"t{number}"]
        if isinstance(value, tuple):
            kind, n, data = value
        else:  # offsets are relative to the pixels, which come last
            shift = end + n_extra if number in (273, 324) else 0
            kind, n, data = 4, len(value), struct.pack(f"<{len(value)}L", *(shift + v for v in value))
        if len(data) > 4:
            entries += struct.pack("<HHLL", number, kind, n, end + len(extra))
            extra += data
        else:
            entries += struct.pack("<HHL", number, kind, n) + data.ljust(4, b"\0")
    return head + entries + bytes(4) + extra + pixels


def tiled_tiff(width, height, tile_px, tiles):
    """A TIFF of deflated tiles, each an array (tile_px[1], tile_px[0])."""
    packed = [zlib.compress(np.ascontiguousarray(tile).tobytes()) for tile in tiles]
    starts = np.cumsum([0, *map(len, packed)])[:-1].tolist()
    layout = {"t322": [tile_px[0]], "t323": [tile_px[1]], "t324": starts, "t325": list(map(len, packed))}
    return tiff(width, height, b"".join(packed), 8, **layout)
