import time
import zlib

import numpy as np
import pytest
from image_bombs import chunk, exif_of, jpeg_of_scans, jpeg_of_segments, png, tiff, tiled_tiff
from PIL import Image

from pipeline.data import image_limits
from pipeline.data.images import UnreadableImageError, decode, open_image, stored_size

ICC_OF_1_MB = chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(999_999)))
ROWS = zlib.compress(bytes(100))

BOMBS = {
    "a JPEG repeats a scan": (jpeg_of_scans(200), "more than 100 scans"),
    "a JPEG has many segments": (jpeg_of_segments(b"\xff\xfe\0\2" * 4000), "its header has more than 10,000 parts"),
    "a JPEG is padded": (jpeg_of_segments(b"\xff" * 20_000), "its header has more than 10,000 parts"),
    "a PNG has many chunks": (png(16, 16, before=chunk(b"abCd") * 6000), "its header has more than 10,000 parts"),
    "a TIFF has many tags": (
        tiff(16, 16, bytes(256), t273=[0], **{f"t{number}": [1] for number in range(40_000, 50_000)}),
        "its header has more than 10,000 parts",
    ),
    "a TIFF has many strips": (
        tiff(16, 16, bytes(256), t273=[0] * 200_001),
        "its tag 273 has 200,001 values of type 4",
    ),
    "a TIFF has a million resolutions": (
        tiff(16, 16, bytes(256), t273=[0], t282=(5, 1_000_000, bytes(8_000_000))),
        "its tag 282 has 1,000,000 values of type 5",
    ),
    "a TIFF has a byte for each strip": (
        tiff(16, 16, bytes(256), t273=(1, 9, bytes(9))),
        "tag 273 has 9 values of type 1",
    ),
    "a TIFF repeats its strips": (
        tiff(16, 16, bytes(256), t273=[0] * 40, t278=[8], t279=[128] * 40),
        "its strips cover it 20 times",
    ),
    "a TIFF has tiles larger than itself": (
        tiled_tiff(128, 16, (16, 2**21), [np.zeros((1, 16), np.uint8)] * 8),
        "with its tiles of 16 x 2097152 px it is too large",
    ),
    "the strips of a TIFF overlap": (
        tiff(100, 500, ROWS, 8, t273=[0] * 500, t278=[1], t279=[len(ROWS) * 10] * 500),
        "its strips have",
    ),
}


@pytest.mark.parametrize("read", [open_image, stored_size])
@pytest.mark.parametrize("name", BOMBS)
def test_more_work_than_an_image_of_its_size_takes_is_refused_before_decoding(name, read):
    content, reason = BOMBS[name]
    started = time.thread_time()
    with pytest.raises(UnreadableImageError, match=reason):
        read(content)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize("read", [open_image, stored_size])
def test_metadata_that_takes_too_long_to_unpack_are_given_up(monkeypatch, read):
    monkeypatch.setattr(image_limits, "MAX_SECONDS", 0.1)
    with pytest.raises(UnreadableImageError, match="decoding it takes more than 0 s"):
        read(png(16, 16, before=ICC_OF_1_MB * 2000))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(png(16, 16, after=chunk(b"abCd") * 200_000), id="chunks behind the pixels of a PNG"),
        pytest.param(png(16, 16, pixels=b"", before=b"", after=chunk(b"IDAT") * 200_000), id="empty parts of a PNG"),
    ],
)
def test_decoding_that_takes_too_long_is_given_up(monkeypatch, content):
    monkeypatch.setattr(image_limits, "MAX_SECONDS", 0.1)
    with pytest.raises(UnreadableImageError, match="decoding it takes more than 0 s"):
        decode(content)


def test_the_time_of_decoding_grows_with_the_number_of_pixels(monkeypatch):
    monkeypatch.setattr(image_limits, "MAX_SECONDS", 0)
    monkeypatch.setattr(image_limits, "MAX_SECONDS_PER_PIXEL", 0.1)
    assert decode(png(16, 16, after=chunk(b"abCd") * 2000)).shape == (16, 16, 3)


def test_a_progressive_jpeg_of_up_to_a_hundred_scans_is_read():
    np.testing.assert_array_equal(decode(jpeg_of_scans(80)), decode(jpeg_of_scans(1)))


def test_the_bytes_of_a_scan_in_a_comment_or_behind_the_image_count_for_nothing():
    content = jpeg_of_segments(b"\xff\xfe\4\2" + b"\xff\xda" * 512) + b"\xff\xda" * 512
    assert decode(content).shape == (64, 64, 3)


def test_a_tiff_of_tiles_that_jut_out_over_its_edge_is_read():
    image = np.random.default_rng(0).integers(0, 256, (40, 24), np.uint8)
    padded = np.pad(image, [(0, 8), (0, 8)])
    tiles = [padded[y : y + 16, x : x + 16] for y in range(0, 48, 16) for x in range(0, 32, 16)]
    content = tiled_tiff(24, 40, (16, 16), tiles)
    np.testing.assert_array_equal(decode(content)[..., 0], image)
    assert stored_size(content) == (40, 24)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_a_tiff_of_any_compression_is_read(encode, mode, compression):
    if (mode, compression) == ("RGBA", "jpeg"):
        pytest.skip("Pillow writes no such TIFF")
    content = encode(Image.new(mode, (300, 400)), "TIFF", compression=compression)
    assert decode(content).shape == (400, 300, 3)


LATE_XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "late", [chunk(b"eXIf", exif_of(6)), chunk(b"iTXt", LATE_XMP), chunk(b"tEXt", b"a\0b") + chunk(b"eXIf", exif_of(8))]
)
def test_the_size_of_a_png_that_is_turned_behind_its_pixels_is_known_without_decoding_them(late):
    assert decode(png(24, 40, after=late)).shape == (24, 40, 3)
    assert stored_size(png(24, 40, after=late)) == (24, 40)
    assert stored_size(png(9400, 9300, pixels=b"these are no pixels", after=late)) == (9400, 9300)


def test_the_limit_of_pixels_is_that_of_the_header(encode):
    content = encode(np.zeros((40, 60, 3), np.uint8), "PNG")
    assert stored_size(content, max_pixels=2400) == (40, 60)
    with pytest.raises(UnreadableImageError, match="60 x 40 px is more than"):
        stored_size(content, max_pixels=2399)
