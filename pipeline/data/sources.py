"""Find images: of a data set in a folder or archives, or of a user by paths."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.archives import (
    MB,
    Entry,
    SourceUsage,
    clean_path,
    is_archive,
    is_junk,
    read_archive,
    rejection_reason,
)
from pipeline.errors import CracksError
from pipeline.params import Limits

# `find_images` takes only these from a folder, because a folder of photos may contain notes and sheets too.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
MAX_FILE_MB = 600  # enough for the largest image that is decoded, 89 megapixels, at 16 bits a colour

Content = bytes | str  # of a file, or why it cannot be read


@dataclass(frozen=True)
class Batch:
    """A part of a data set that arrived at one time: its name, and its archive or folder."""

    name: str
    source: Path


def batches_of(source: Path) -> list[Batch]:
    """Return the batches of a source, oldest first. Raises CracksError if it does not exist.

    In a folder of archives, each archive is a batch, ordered by name; loose files form the first batch. Any other
    source is one batch.
    """
    if not source.exists():
        raise CracksError(
            f"The source {source} does not exist. Put the archive there, or correct `source` in params.yaml."
        )
    archives = sorted(path for path in source.iterdir() if _is_batch(path)) if source.is_dir() else []
    return [Batch("", source), *(Batch(clean_path(path.name), path) for path in archives)]


def read_batch(batch: Batch, limits: Limits) -> Iterator[Entry]:
    """Yield every file of a batch. Raises CracksError if an archive cannot be read, or the batch exceeds a limit."""
    usage = SourceUsage(batch.source, limits)
    return _read_folder(batch.source, usage) if batch.source.is_dir() else read_archive(batch.source, usage)


def _is_batch(path: Path) -> bool:
    return is_archive(path.name) and path.is_file() and not is_junk(path.name)


def _read_folder(folder: Path, usage: SourceUsage) -> Iterator[Entry]:
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = clean_path(path.relative_to(folder).as_posix())
        if path.is_dir() or is_junk(name) or (path.parent == folder and _is_batch(path)):
            continue
        reason = rejection_reason(name)
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            reason = "a link that leads out of the folder, or no file"
        elif path.stat().st_size > usage.limits.max_file_mb * MB:
            reason = f"larger than {usage.limits.max_file_mb} MB"
        content = None if reason else path.read_bytes()
        usage.add_file()
        usage.add_bytes(len(content or b""))
        yield Entry(name, content, reason)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return `paths` with each folder replaced by the image files below it, sorted.

    Raises CracksError if a path does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise CracksError(f"{path} does not exist. Give images, or folders of images.")
        if path.is_dir():
            found += sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES
                and file.is_file()
                and not is_junk(file.relative_to(path).as_posix())
            )
        else:
            found.append(path)
    if not found:
        raise CracksError(f"No image found. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found


def read_image_file(path: Path) -> Content:
    """Return the bytes of an image file, or why it cannot be read."""
    try:
        if path.stat().st_size > MAX_FILE_MB * MB:
            return f"larger than {MAX_FILE_MB} MB"
        return path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
