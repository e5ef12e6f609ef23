"""Find images: of a data set in a folder or archives, or of a user by paths."""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.archives import (
    MB,
    Entry,
    SourceUsage,
    clean_path,
    is_archive,
    read_archive,
    rejection_reason,
)
from pipeline.data.image_names import (
    IMAGE_SUFFIXES,
    left_out_reason,
    no_picture_reason,
    not_read_reason,
    reasons_with_counts,
)
from pipeline.errors import CracksError
from pipeline.params import Limits

MAX_FILE_MB = 600  # enough for the largest image that is decoded, 200 megapixels, at 8 bits a colour
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"BM")  # of FORMATS of pipeline.data.images

log = logging.getLogger(__name__)

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
    return is_archive(path.name) and path.is_file() and not left_out_reason(path.name)


def files_below(folder: Path) -> list[tuple[Path, str]]:
    """Return every file below a folder and why it cannot be followed, or ""; sorted by path.

    Links to folders are followed, wherever they lead, but no folder is read twice, and none that contains `folder`: a
    link may lead back to where it is. What is not followed, or not permitted to be listed, is returned with the reason.
    """
    found: list[tuple[Path, str]] = []
    top, seen, links = folder.resolve(), set[Path](), [folder]
    for link in links:  # grows in the loop
        unlisted: list[OSError] = []
        for parent, folders, names in os.walk(link, onerror=unlisted.append):
            here, real = Path(parent), Path(parent).resolve()
            if real in seen or (top != real and top.is_relative_to(real)):
                found.append((here, "a link to a folder that is read already, or that contains this one"))
                folders.clear()
                continue
            seen.add(real)
            links += [here / name for name in sorted(folders) if (here / name).is_symlink()]
            found += [(here / name, "") for name in names]
        found += [(Path(error.filename), f"a folder that cannot be read: {error.strerror}") for error in unlisted]
    return sorted(found, key=lambda file: file[0].relative_to(folder).as_posix())


def _read_folder(folder: Path, usage: SourceUsage) -> Iterator[Entry]:
    files = files_below(folder)
    parents = {place for below in {path.parent for path, _ in files} for place in (below, *below.parents)}
    if linked := sorted(str(place) for place in parents if folder in place.parents and place.is_symlink()):
        log.warning(
            "DVC does not notice when files behind a link to a folder change: %s. After a change, run "
            "`dvc repro --force ingest`, or put the files in its place.",
            ", ".join(linked),
        )
    for path, problem in files:
        name = clean_path(path.relative_to(folder).as_posix())
        if path.parent == folder and _is_batch(path):
            continue
        if reason := problem or left_out_reason(name):
            yield Entry(name, None, reason, is_left_out=True)
            continue
        content: Content = rejection_reason(name) or read_image_file(path, usage.limits.max_file_mb)
        usage.add_file()
        usage.add_bytes(len(content) if isinstance(content, bytes) else 0)
        yield Entry(name, None, content) if isinstance(content, str) else Entry(name, content)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return `paths` with each folder replaced by the pictures below it, sorted; log what is left out, and why.

    Pictures of kinds that are not read are among them: `read_image_file` returns the reason. Raises CracksError if a
    path does not exist, or there is no picture at all.
    """
    found: list[Path] = []
    left_out: list[str] = []
    for path in paths:
        if not path.exists():
            raise CracksError(f"{path} does not exist. Give images, or folders of images.")
        if not path.is_dir():
            found.append(path)
            continue
        for file, problem in files_below(path):
            name = file.relative_to(path).as_posix()
            if reason := problem or left_out_reason(name) or _no_picture_reason(file):
                left_out.append(reason)
            else:
                found.append(file)
    if not found:
        raise CracksError(
            f"No image found. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
            + (f" Left out:{reasons_with_counts(left_out)}" if left_out else "")
        )
    if left_out:
        log.info("Left out:%s", reasons_with_counts(left_out))
    return found


def _no_picture_reason(path: Path) -> str:
    """Return why a file of a folder is no picture, by its suffix or, without one, by its first bytes."""
    try:
        path.stat()
        if path.suffix or not path.is_file():
            return no_picture_reason(path.name)
        with path.open("rb") as file:
            return "" if file.read(8).startswith(SIGNATURES) else no_picture_reason(path.name)
    except OSError:  # such as a link to nothing, whatever it was to be
        return ""


def read_image_file(path: Path, max_mb: int = MAX_FILE_MB) -> Content:
    """Return the bytes of a file, or why it cannot be read, or is a picture of a kind that is not."""
    try:
        n_bytes = path.stat().st_size  # fails with the reason where a link leads nowhere
        if not path.is_file():
            return "a device or a pipe, not a file"
        if n_bytes > max_mb * MB:
            return f"larger than {max_mb} MB"
        return not_read_reason(path.name) or path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
