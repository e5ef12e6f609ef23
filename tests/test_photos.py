import tracemalloc

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.data.photos import filled, read_photo

WALL = np.full((20, 40, 3), 200, np.uint8)


@pytest.fixture
def photo(encode):
    """A function that gives the bytes of a photo with EXIF data."""

    def photo(*, orientation=1, taken=None, gps=None):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        if taken is not None:
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
        if gps is not None:
            exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
        return encode(WALL, exif=exif)

    return photo


def test_a_photo_on_its_side_is_turned_upright(photo):
    assert read_photo(photo(orientation=6)).pixels.shape == (40, 20, 3)


def test_time_and_place_are_read(photo):
    gps = {1: "S", 2: (33.0, 51.0, 24.12), 3: "W", 4: (151.0, 12.0, 36.0)}
    read = read_photo(photo(taken="2026:05:01 10:20:30", gps=gps))
    assert read.time == "2026-05-01T10:20:30"
    assert read.place == (-33.8567, -151.21)


@pytest.mark.parametrize("taken", ["0000:00:00 00:00:00", "yesterday", ""])
def test_a_camera_without_a_clock_has_no_time(photo, taken):
    assert read_photo(photo(taken=taken)).time is None


@pytest.mark.parametrize(
    "gps",
    [{}, {1: "N", 2: (1.0, 2.0)}, {1: "N", 2: (91.0, 0.0, 0.0), 3: "E", 4: (1.0, 0.0, 0.0)}, {2: (1.0, 2.0, 3.0)}],
)
def test_an_invalid_place_is_none(photo, gps):
    assert read_photo(photo(gps=gps)).place is None


def test_a_photo_without_exif_has_neither(encode):
    read = read_photo(encode(WALL, "PNG"))
    assert (read.time, read.place) == (None, None)


def test_transparent_parts_get_the_median_colour_without_many_copies_of_the_photo():
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 3000, 3), np.uint8)
    photographed = np.arange(3000) >= np.full((1000, 1), 500)
    tracemalloc.start()
    result = filled(pixels, photographed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * pixels.nbytes
    assert np.array_equal(result[photographed], pixels[photographed])
    assert (result[~photographed] == np.median(pixels[photographed], axis=0).astype(np.uint8)).all()
