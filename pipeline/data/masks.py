"""Label images, or tiles of them, by masks that show where their cracks are: PNG, MAT, or polygons in COCO's format.

A tile is cracked where a connected piece of the mask is at least `min_crack_px` long, and intact where the mask is
empty. One with less of a crack is neither, and goes to quarantine.
"""

import io
import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipeline.data.archives import Entry
from pipeline.data.image_names import no_picture_reason
from pipeline.data.images import MISFIT, UnreadableImageError, encode_png, open_image, stored_size, to_pixels
from pipeline.errors import CracksError
from pipeline.params import Masks

log = logging.getLogger(__name__)

Crack = npt.NDArray[np.bool_]  # (height, width), True where there is a crack
Shape = tuple[int, int]  # height and width in pixels
MaskReader = Callable[[Shape], Crack]  # shape of the image -> its mask; raises UnreadableImageError

MASK_SUFFIXES = {".png", ".mat"}  # a JPEG changes the values of a mask
MAT_COMPRESSED, MAT_HEADER_BYTES = 15, 128  # MATLAB 5.0 MAT-file format
MAX_MAT_BYTES_PER_PIXEL = 32  # CFD's have two arrays, of at most eight bytes


def labelled_entries(read: Callable[[], Iterator[Entry]], masks: Masks, max_pixels: int) -> Iterator[Entry]:
    """Yield the images of a batch, or their tiles, in a folder named by their label, and what cannot be used.

    `read` yields every file of the batch; it is called twice, because a mask may come after its image. A tile of
    photo.jpg is photo-Y-X.png, by its upper left corner in pixels.
    """
    readers: dict[str, tuple[str, MaskReader]] = {}  # path of an image, without suffix -> path of its mask, reader
    mask_paths, found_crack = set(), False
    for entry in read():
        if entry.is_left_out:
            continue
        found = _coco_readers(entry, masks) if masks.coco else _file_reader(entry, masks)
        readers |= {key: (entry.path, reader) for key, reader in found.items()}
        mask_paths |= {entry.path} if found else set()
    for entry in read():
        if entry.path in mask_paths:
            continue
        if entry.is_left_out or (PurePosixPath(entry.path).suffix and no_picture_reason(entry.path)):
            yield entry
            continue
        try:
            crack = _mask_of(entry, max_pixels, readers.pop(_key(entry.path), None))
            pixels = to_pixels(open_image(entry.content or b"", max_pixels)) if masks.tile_px else None
        except UnreadableImageError as error:
            yield Entry(entry.path, None, str(error))
            continue
        found_crack |= bool(crack.any())
        path = PurePosixPath(entry.path)
        for tile, name in _tiles(crack.shape, masks.tile_px):
            label, reason = _label(crack[tile], masks.min_crack_px)
            content = encode_png(np.ascontiguousarray(pixels[tile])) if pixels is not None and name else entry.content
            yield Entry(str(path.parent / label / (path.stem + (name or path.suffix))), content, reason)
    for key, (mask_path, _) in readers.items():
        yield Entry(mask_path, None, f"{MISFIT}there is no image {key}")
    if mask_paths and not found_crack:
        log.warning("No mask of these images has a crack: %s, by `masks.crack`", ", ".join(map(str, masks.crack)))


def _mask_of(entry: Entry, max_pixels: int, mask: tuple[str, MaskReader] | None) -> Crack:
    """Return the mask of an image, of which only the header is read. Raises UnreadableImageError."""
    if entry.content is None:
        raise UnreadableImageError(entry.reason)
    shape = stored_size(entry.content, max_pixels)
    if mask is None:
        raise UnreadableImageError(f"{MISFIT}there is none")
    mask_path, reader = mask
    try:
        return reader(shape)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{MISFIT}{mask_path} {error}") from None


def _key(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _tiles(shape: tuple[int, ...], tile_px: int | None) -> Iterator[tuple[tuple[slice, slice], str]]:
    """Yield each tile of an image, and the end of its name; the last of a row or column ends at the edge.

    An image that is smaller than a tile, and any without `tile_px`, is yielded whole, with an empty string.
    """
    if tile_px is None or min(shape) < tile_px:
        yield np.s_[:, :], ""
        return
    tops, lefts = (sorted({*range(0, side - tile_px + 1, tile_px), side - tile_px}) for side in shape)
    for top in tops:
        for left in lefts:
            yield np.s_[top : top + tile_px, left : left + tile_px], f"-{top}-{left}.png"


def _label(crack: Crack, min_crack_px: int) -> tuple[str, str]:
    """Return crack or intact, and the reason if it is neither."""
    from scipy import ndimage  # the import takes a third of a second, and most data sets have no masks

    pieces = ndimage.find_objects(ndimage.label(crack, np.ones((3, 3)))[0])
    length_px = max((side.stop - side.start for piece in pieces for side in piece), default=0)
    too_short = f"neither cracked nor intact: its crack is {length_px} px long, less than {min_crack_px}"
    return ("crack" if length_px else "intact"), (too_short if 0 < length_px < min_crack_px else "")


def _file_reader(entry: Entry, masks: Masks) -> dict[str, MaskReader]:
    """Return the reader of a mask that is a PNG or MAT file, by the key of its image; empty if the file is no mask."""
    path = PurePosixPath(entry.path)
    for of_images, of_masks in masks.folders.items():
        parts = PurePosixPath(of_masks).parts
        if path.suffix.lower() in MASK_SUFFIXES and path.parent.parts[-len(parts) :] == parts:
            above = path.parent.parents[len(parts) - 1]
            return {str(above / of_images / path.stem): partial(_read_file, entry, masks.crack)}
    return {}


def _read_file(entry: Entry, crack: Sequence[int | str], shape: Shape) -> Crack:
    """Return where a mask has a value of `crack`; a PNG's are grey levels, or indices into its palette."""
    if entry.content is None:
        raise UnreadableImageError(entry.reason)
    if entry.path.lower().endswith(".mat"):
        values = read_mat(entry.content, shape)
    else:
        _check_shape(stored_size(entry.content), shape)
        image = open_image(entry.content)
        values = np.asarray(image.convert("L") if image.mode in ("1", "LA", "RGB", "RGBA") else image)
    return np.isin(values, [value for value in crack if isinstance(value, int)])


def _check_shape(mask: tuple[Any, ...], image: Shape) -> None:
    if mask != image:
        sizes = (" x ".join(map(str, reversed(shape))) for shape in (mask, image))
        raise UnreadableImageError("is {} px, and the image {} px".format(*sizes))


def read_mat(content: bytes, shape: Shape) -> npt.NDArray[Any]:
    """Return the array Segmentation of a MAT file, at any depth: (height, width).

    Raises UnreadableImageError if the file is damaged, has no such array or one of another shape, or unpacks to more
    than such a mask needs.
    """
    from scipy.io import loadmat

    try:
        _check_unpacked_size(content, MAX_MAT_BYTES_PER_PIXEL * shape[0] * shape[1] + 2**20)
        found = _segmentation(loadmat(io.BytesIO(content), simplify_cells=True))
    except UnreadableImageError:
        raise
    except Exception as error:  # damaged bytes make SciPy raise struct.error, TypeError and more
        raise UnreadableImageError(f"cannot be read: {error}") from None
    if found is None:
        raise UnreadableImageError("has no array Segmentation")
    _check_shape(found.shape, shape)
    return found


def _check_unpacked_size(content: bytes, max_bytes: int) -> None:
    order, start = "<" if content[126:128] == b"IM" else ">", MAT_HEADER_BYTES
    while start + 8 <= len(content):
        kind, n_bytes = struct.unpack_from(f"{order}II", content, start)
        start += 8 + n_bytes
        if kind == MAT_COMPRESSED:
            max_bytes -= len(zlib.decompressobj().decompress(content[start - n_bytes : start], max_bytes + 1))
            if max_bytes < 0:
                raise UnreadableImageError("unpacks to more than a mask of this image needs")


def _segmentation(value: Any) -> npt.NDArray[Any] | None:
    """Return the first array called Segmentation in nested dictionaries and lists, None if there is none."""
    if isinstance(value, dict):
        if isinstance(value.get("Segmentation"), np.ndarray):
            return np.asarray(value["Segmentation"])
        value = list(value.values())
    is_list = isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind == "O")
    parts = value if is_list else ()
    return next((found for part in parts if (found := _segmentation(part)) is not None), None)


def _coco_readers(entry: Entry, masks: Masks) -> dict[str, MaskReader]:
    """Return a reader for each image of a file of annotations, by its key; empty if the file is another one.

    An image without polygons is intact. Raises CracksError if the file is damaged.
    """
    path = PurePosixPath(entry.path)
    if path.name != masks.coco:
        return {}
    try:
        content = json.loads(entry.content or b"")
        cracks = {category["id"] for category in content["categories"] if category["name"] in masks.crack}
        polygons: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation["category_id"] in cracks:
                polygons[annotation["image_id"]].append(annotation["segmentation"])
        return {
            _key(str(path.parent / image["file_name"])): partial(_draw, image, polygons[image["id"]])
            for image in content["images"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CracksError(
            f"{entry.path} is no file of annotations in COCO's format: {entry.reason or repr(error)}. It needs "
            "categories, images, and annotations with category_id, image_id and segmentation."
        ) from None


def _draw(image: dict[str, Any], annotated: list[Any], shape: Shape) -> Crack:
    _check_shape((image.get("height"), image.get("width")), shape)
    mask = Image.new("1", (shape[1], shape[0]))
    try:
        polygons = [np.array(one, np.float64).reshape(-1, 2) for several in annotated for one in several]  # x, y
        for corners in polygons:
            if not ((corners >= -1) & (corners <= np.array(shape[::-1]) + 1)).all():
                raise UnreadableImageError("has a polygon that leads out of the image")
            ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=1, outline=1)
    except (TypeError, ValueError):
        raise UnreadableImageError("has no polygons of x, y, x, y, ...; run-length codes are not read") from None
    return np.asarray(mask)
