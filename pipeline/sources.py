"""Finding images wherever they are: a data set's in a folder or an archive, a person's by their paths.

Nothing is unpacked to disk.
"""

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from pipeline.errors import CracksError

# What file managers leave behind; never an image of anyone's.
JUNK_NAMES = {"Thumbs.db", "desktop.ini"}
JUNK_FOLDERS = {"__MACOSX"}

# In a folder, only files that are named like images are taken: a photo folder holds notes and sheets too.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}

# What the decompressors raise on damaged data; OSError is gzip's and bzip2's.
DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error)


def read_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path inside the source, content) of every file: sorted by path, but a tar in its own order.

    Raises:
        CracksError: the source is missing, or is neither a folder nor an archive that can be read.

    """
    if not source.exists():
        raise CracksError(
            f"The source {source} does not exist. Put the archive there, or correct `source` in params.yaml."
        )
    if source.is_dir():
        yield from _read_folder(source)
    elif zipfile.is_zipfile(source):
        yield from _read_zip(source)
    elif _is_tar(source):
        yield from _read_tar(source)
    else:
        raise CracksError(
            f"The source {source} is neither a folder nor a .zip or .tar archive that can be read. "
            "If it was downloaded, download it again: it may be cut short."
        )


def _is_tar(source: Path) -> bool:
    try:
        return tarfile.is_tarfile(source)
    except DAMAGED:
        return True  # compressed, and cut short or damaged: reading it says so


def _is_junk(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return parts[-1] in JUNK_NAMES or parts[-1].startswith(".") or not JUNK_FOLDERS.isdisjoint(parts)


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _is_junk(name):
            yield name, path.read_bytes()


def _read_zip(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in sorted(opened.infolist(), key=lambda entry: entry.filename):
                if not entry.is_dir() and not _is_junk(entry.filename):
                    yield entry.filename, opened.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, *DAMAGED) as error:
        raise CracksError(f"The archive {archive} cannot be read: {error}. Download or make it again.") from None


def _read_tar(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive) as opened:
            # In the archive's own order: a compressed tar can only be read forwards.
            for entry in opened:
                content = opened.extractfile(entry) if entry.isfile() and not _is_junk(entry.name) else None
                if content is not None:
                    yield PurePosixPath(entry.name).as_posix(), content.read()  # without a leading "./"
            _check_end(opened)
    except (tarfile.TarError, *DAMAGED) as error:
        raise CracksError(f"The archive {archive} cannot be read: {error}. Download or make it again.") from None


def _check_end(opened: tarfile.TarFile) -> None:
    """Raise ReadError unless what is behind the last header that could be read is the end mark and padding.

    tarfile takes a damaged or missing header for the end, and checks no checksum that is stored behind it.
    """
    block = opened.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut short")
    while block:
        if any(block):
            raise tarfile.ReadError("it is damaged")
        block = opened.fileobj.read(2**20)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return the image files among `paths` and below those that are folders, sorted within each folder.

    Raises:
        CracksError: a path does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise CracksError(f"{path} does not exist. Give images, or folders that hold some.")
        if path.is_dir():
            found += sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES
                and file.is_file()
                and not _is_junk(file.relative_to(path).as_posix())
            )
        else:
            found.append(path)
    if not found:
        raise CracksError(f"No image found. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found
