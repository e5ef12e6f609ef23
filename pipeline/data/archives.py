"""Reading archives that may be hostile: .zip, .tar (plain, gzip, bzip2, xz) and .rar. Nothing is unpacked to disk.

An entry that cannot be used is passed on with the reason; an archive that exceeds a limit is refused whole.
"""

import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.errors import CracksError
from pipeline.params import Limits

ARCHIVE_SUFFIXES = (".zip", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".txz")
# What file managers leave behind; never an image of anyone's.
JUNK_NAMES = {"Thumbs.db", "desktop.ini"}
JUNK_FOLDERS = {"__MACOSX"}
# What readers and decompressors raise on damaged data; OSError is gzip's and bzip2's, RuntimeError and ValueError are
# zipfile's and tarfile's.
DAMAGED = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)

MB = 1_000_000
# Below this a high ratio of expansion is no bomb: an even grey bitmap shrinks a thousandfold.
SMALLEST_BOMB_BYTES = 10 * MB
# Of a name and what else a tar notes about one file; tarfile holds it in memory.
MAX_TAR_METADATA_BYTES = 1 * MB
TAR_METADATA_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


@dataclass(frozen=True)
class Entry:
    """A file of a source: its path inside, with forward slashes, and its content, or why it has none."""

    path: str
    content: bytes | None
    reason: str = ""


@dataclass
class SourceUsage:
    """What a source may still take of its limits; the whole source is refused when it wants more."""

    source: Path
    limits: Limits
    n_files: int = 0
    n_bytes: int = 0

    def add_file(self, n_bytes: int) -> None:
        """Count one more file of `n_bytes`. Raises CracksError over a limit."""
        self.n_files += 1
        self.n_bytes += n_bytes
        if self.n_files > self.limits.max_files:
            self.refuse(f"it holds more than {self.limits.max_files:,} files", "max_files")
        if self.n_bytes > self.limits.max_total_mb * MB:
            self.refuse(f"it holds more than {self.limits.max_total_mb:,} MB", "max_total_mb")

    def check_ratio(self, path: str, n_bytes: int, n_packed_bytes: int) -> None:
        """Raise CracksError where an entry expands so much that it must be a bomb."""
        if n_bytes > max(SMALLEST_BOMB_BYTES, n_packed_bytes * self.limits.max_expansion):
            self.refuse(f"{path!r} grows more than {self.limits.max_expansion} times when unpacked", "max_expansion")

    def refuse(self, why: str, limit: str) -> None:
        """Raise the CracksError that refuses the source."""
        raise CracksError(
            f"The source {self.source} is refused: {why}. If it is sound all the same, raise ingest.{limit} in "
            "params.yaml."
        )


def is_archive(name: str) -> bool:
    """Return whether a file is named like an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_junk(path: str) -> bool:
    """Return whether a file is one that file managers leave behind."""
    parts = PurePosixPath(path).parts
    return not parts or parts[-1] in JUNK_NAMES or parts[-1].startswith(".") or not JUNK_FOLDERS.isdisjoint(parts)


def clean_path(name: str) -> str:
    """Return an entry's name with forward slashes and without a leading "./"; undecodable bytes are written out."""
    text = name.replace("\\", "/").encode("utf-8", "backslashreplace").decode("utf-8")
    return PurePosixPath(text).as_posix()


def rejection_reason(path: str) -> str:
    """Return why an entry of this path is not used, empty where nothing is wrong with it."""
    parts = PurePosixPath(path).parts
    leads_out = path.startswith("/") or ".." in parts or (len(path) > 1 and path[1] == ":") or "\0" in path
    return "its path leads out of the archive" if leads_out else ""


def read_archive(archive: Path, usage: SourceUsage, inside: str = "") -> Iterator[Entry]:
    """Yield every file of an archive: a zip's sorted by path, a tar's and a rar's in their own order.

    Archives inside a zip are read as if their files stood beside them, one level deep.

    Args:
        archive: the file to read.
        usage: what its source may still take.
        inside: its path in the zip that it was in, if it was.

    Raises:
        CracksError: it cannot be read, exceeds a limit, or is a .rar and no tool for it is installed.
    """
    shown = f"{inside} in {usage.source}" if inside else str(archive)
    try:
        with archive.open("rb") as opened:
            is_rar = opened.read(6) == b"Rar!\x1a\x07"
        if is_rar:
            yield from _read_rar(archive, usage, shown)
        elif zipfile.is_zipfile(archive):
            yield from _read_zip(archive, usage, is_nested=bool(inside))
        elif _is_tar(archive):
            with tarfile.open(archive, tarinfo=_Header) as tar:
                yield from _read_tar(tar, usage, archive.stat().st_size)
                _check_end(tar.fileobj, usage, archive.stat().st_size)  # type: ignore[arg-type]  # it is open
        else:
            raise CracksError(
                f"The source {shown} is neither a folder nor a .zip, .tar or .rar archive that can be read. "
                "If it was downloaded, download it again: it may be cut short."
            )
    except DAMAGED as error:
        raise CracksError(f"The archive {shown} cannot be read: {error}. Download or make it again.") from None


def _is_tar(archive: Path) -> bool:
    try:
        with tarfile.open(archive, tarinfo=_Header):
            return True
    except tarfile.TarError:
        return False
    except DAMAGED:
        return True  # compressed, and cut short or damaged: reading it says so


def _read_zip(archive: Path, usage: SourceUsage, *, is_nested: bool) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as opened:
        entries = sorted(opened.infolist(), key=lambda entry: entry.filename)
        # From the table of contents alone, before anything is read: a bomb costs nothing.
        for entry in entries:
            usage.check_ratio(entry.filename, entry.file_size, entry.compress_size)
            usage.add_file(entry.file_size)
        for entry in entries:
            path = clean_path(entry.filename)
            if is_junk(path) or entry.is_dir():  # in this order: an empty name is junk, and breaks is_dir
                continue
            reason = _zip_rejection_reason(entry, path)
            if reason:
                yield Entry(path, None, reason)
            elif is_archive(path) and not is_nested:
                yield from _read_nested(opened, entry, path, usage)
            else:
                yield _zip_entry(opened, entry, path, usage.limits)


def _zip_rejection_reason(entry: zipfile.ZipInfo, path: str) -> str:
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        return "a link or a device, not a file"
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # of the others, zipfile unpacks as much as comes, however little the table of contents says
        return "packed by a method other than deflate"
    return rejection_reason(path)


def _zip_entry(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str, limits: Limits) -> Entry:
    if entry.file_size > limits.max_file_mb * MB:
        return Entry(path, None, f"larger than {limits.max_file_mb} MB")
    try:
        with opened.open(entry) as content:
            # never more than this is unpacked; one byte more, for the checksum of an empty file to be looked at
            return Entry(path, content.read(entry.file_size + 1))
    except DAMAGED as error:
        return Entry(path, None, f"damaged in the archive: {error}")


def _read_nested(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str, usage: SourceUsage) -> Iterator[Entry]:
    with tempfile.NamedTemporaryFile(suffix=Path(entry.filename).suffix) as inner:
        with opened.open(entry) as content:
            shutil.copyfileobj(content, inner)
        inner.flush()
        yield from read_archive(Path(inner.name), usage, path)


class _Header(tarfile.TarInfo):
    """A header of a tar that does not make tarfile read backwards, or gigabytes of a name into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        is_metadata = header.type in TAR_METADATA_TYPES
        if header.size < 0 or (is_metadata and header.size > MAX_TAR_METADATA_BYTES):
            raise tarfile.ReadError("it is damaged")
        return header


def _read_tar(opened: tarfile.TarFile, usage: SourceUsage, n_packed_bytes: int) -> Iterator[Entry]:
    for entry in opened:
        path = clean_path(entry.name)
        if entry.size < 0:  # as a note may say
            raise tarfile.ReadError("it is damaged")
        usage.add_file(entry.size)
        usage.check_ratio(path, usage.n_bytes, n_packed_bytes)
        if entry.isdir() or is_junk(path):
            continue
        reason = rejection_reason(path)
        if not entry.isfile():
            reason = "a link or a device, not a file"
        elif entry.size > usage.limits.max_file_mb * MB:
            reason = f"larger than {usage.limits.max_file_mb} MB"
        content = None if reason else opened.extractfile(entry)
        yield Entry(path, content.read() if content else None, reason)


def _check_end(rest: IO[bytes], usage: SourceUsage, n_packed_bytes: int) -> None:
    """Raise ReadError unless what is behind the last header that could be read is the end mark and padding.

    tarfile takes a damaged or missing header for the end, and checks no checksum that is stored behind it.
    """
    block = rest.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut short")
    while block:
        if any(block):
            raise tarfile.ReadError("it is damaged")
        usage.n_bytes += len(block)
        if usage.n_bytes > usage.limits.max_total_mb * MB:
            usage.refuse(f"it unpacks to more than {usage.limits.max_total_mb:,} MB", "max_total_mb")
        usage.check_ratio("what is behind its last file", usage.n_bytes, n_packed_bytes)
        block = rest.read(2**20)


def _read_rar(archive: Path, usage: SourceUsage, shown: str) -> Iterator[Entry]:
    """Let bsdtar turn the archive into a tar that is read as it comes: one process, nothing on disk."""
    tool = shutil.which("bsdtar")
    if tool is None:
        raise CracksError(
            f"{shown} is a .rar archive, and no tool that reads it is installed. Install bsdtar (on Debian and "
            "Ubuntu: apt-get install libarchive-tools), or unpack the archive and name the folder as the source."
        )
    command = [tool, "-c", "-f", "-", f"@{archive}"]
    in_unicode = {**os.environ, "LC_ALL": "C.UTF-8"}  # else it warns of every name that is not plain ASCII
    problem = ""
    # Its messages go to a file: a pipe that nobody reads fills up, and it would wait for ever.
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, env=in_unicode) as process,
    ):
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|", tarinfo=_Header) as tar:
                yield from _read_tar(tar, usage, archive.stat().st_size)
        except tarfile.ReadError as error:
            problem = str(error)
            process.terminate()
        except BaseException:
            process.kill()
            raise
        process.communicate()
        messages.seek(0)
        # of a broken archive bsdtar's own message says more
        problem = messages.read().decode(errors="replace").strip() or problem
    if problem or process.returncode:
        raise CracksError(f"The archive {shown} cannot be read: {problem}. Download or make it again.")
