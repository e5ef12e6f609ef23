"""Read photos with the time and place at which they were taken."""

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from pipeline.data.image_limits import LimitedFile
from pipeline.data.images import FORMATS, Pixels, open_image, to_pixels

Mask = npt.NDArray[np.bool_]  # (height, width)


@dataclass(frozen=True)
class Photo:
    """A photo, upright, and when and where it was taken, None if unknown."""

    pixels: Pixels
    photographed: Mask | None  # where it is not transparent; None: everywhere
    time: str | None  # local time, ISO 8601, as its camera wrote it
    place: tuple[float, float] | None  # latitude, longitude, in degrees


def read_photo(content: bytes) -> Photo:
    """Decode a photo and read its time and place. Raises UnreadableImageError."""
    image = open_image(content)
    exif = image.getexif()
    details = {**dict(exif), **dict(exif.get_ifd(ExifTags.IFD.Exif))}
    taken = details.get(ExifTags.Base.DateTimeOriginal) or details.get(ExifTags.Base.DateTime)
    place = _place(dict(exif.get_ifd(ExifTags.IFD.GPSInfo)))
    return Photo(to_pixels(image), _opaque_part(image), _iso_time(taken), place)


def photographed(content: bytes) -> Mask | None:
    """Return where the upright photo in a file that can be decoded is not transparent; None if it nowhere is."""
    header = Image.open(LimitedFile(content), formats=FORMATS)
    return _opaque_part(open_image(content)) if header.has_transparency_data else None


def filled(pixels: Pixels, photographed: Mask | None) -> Pixels:
    """Return a photo, (height, width, 3), with its median colour where it is transparent: no edge is left there."""
    if photographed is None:
        return pixels
    result = pixels.copy()
    for channel in np.moveaxis(result, 2, 0):  # one by one: NumPy copies what it takes the median of
        channel[~photographed] = np.median(channel[photographed])
    return result


def _opaque_part(image: Image.Image) -> Mask | None:
    if not image.has_transparency_data:
        return None
    ImageOps.exif_transpose(image, in_place=True)
    alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    return None if alpha.getextrema()[0] == 255 else np.asarray(alpha) > 0


def _iso_time(taken: Any) -> str | None:
    """Return "2026:05:01 10:20:30" as ISO 8601; None for anything else, such as zeros of a camera without a clock."""
    try:
        return datetime.datetime.strptime(str(taken).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None


def _place(gps: dict[int, Any]) -> tuple[float, float] | None:
    try:
        latitude = _degrees(gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLatitudeRef] == "S")
        longitude = _degrees(gps[ExifTags.GPS.GPSLongitude], gps[ExifTags.GPS.GPSLongitudeRef] == "W")
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else None


def _degrees(parts: Any, is_negative: bool) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    value = round(degrees + minutes / 60 + seconds / 3600, 6)
    return -value if is_negative else value
