"""Read untrusted archives: .zip, .tar (plain, gzip, bzip2, xz) and .rar. No image is unpacked to disk.

An archive in an archive passes through a temporary file. An entry that cannot be used is yielded with the reason. An
archive that exceeds a limit is refused.
"""

import io
import lzma
import math
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
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.data.image_names import left_out_reason
from pipeline.data.tars import NoTarError, read_members, unpacked
from pipeline.errors import REMEDIES, CracksError
from pipeline.params import Limits

ARCHIVE_SUFFIXES = (".zip", ".rar", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".txz")
# Raised on damaged data: OSError by gzip and bzip2, RuntimeError and ValueError by zipfile and tarfile.
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
ZIP_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}  # that are not read
# Less is no decompression bomb, whatever its ratio: bitmaps of one colour shrink a thousandfold.
SMALLEST_BOMB_BYTES = 10 * MB


@dataclass(frozen=True)
class Entry:
    """A file of a source: its path in it, with forward slashes, and its content, or the reason why it has none."""

    path: str
    content: bytes | None
    reason: str = ""
    is_left_out: bool = False  # no image of the user's, such as a thumbnail


@dataclass
class SourceUsage:
    """What has been read of a source. A source that exceeds a limit is refused."""

    source: Path
    limits: Limits
    n_files: int = 0
    n_bytes: int = 0  # unpacked

    def add_file(self) -> None:
        """Count one more file. Raises CracksError over the limit."""
        self.n_files += 1
        if self.n_files > self.limits.max_files:
            self.refuse(f"it contains more than {self.limits.max_files:,} files", "max_files")

    def add_bytes(self, n: int) -> None:
        """Count bytes that are read, in an archive unpacked. Raises CracksError over a limit."""
        self.n_bytes += n
        self.expect(0)

    def expect(self, n: int) -> None:
        """Raise CracksError if reading `n` bytes more would exceed a limit."""
        n_bytes, expansion = self.n_bytes + n, self.limits.max_expansion
        if n_bytes > self.limits.max_total_mb * MB:
            self.refuse(f"it contains more than {self.limits.max_total_mb:,} MB", "max_total_mb")
        if n_bytes > max(SMALLEST_BOMB_BYTES, expansion * self._n_packed_bytes):
            self.refuse(f"it expands more than {expansion} times when unpacked", "max_expansion")

    @cached_property
    def _n_packed_bytes(self) -> float:
        return self.source.stat().st_size if self.source.is_file() else math.inf

    def refuse(self, why: str, limit: str) -> None:
        """Raise the CracksError that refuses the source."""
        raise CracksError(
            f"The source {self.source} is refused: {why}. If you trust it nevertheless, raise ingest.{limit} in "
            "params.yaml."
        )


def is_archive(name: str) -> bool:
    """Return whether a file name has the suffix of an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def clean_path(name: str) -> str:
    """Return an entry's name with forward slashes and without a leading "./"; undecodable bytes are escaped."""
    text = name.replace("\\", "/").encode("utf-8", "backslashreplace").decode("utf-8")
    return PurePosixPath(text).as_posix()


def rejection_reason(path: str) -> str:
    """Return why an entry with this path is not used; empty if it is."""
    parts = PurePosixPath(path).parts
    leads_out = path.startswith("/") or ".." in parts or (len(path) > 1 and path[1] == ":") or "\0" in path
    return "its path leads out of the archive" if leads_out else ""


def read_archive(archive: Path, usage: SourceUsage, inside: str = "") -> Iterator[Entry]:
    """Yield every file of an archive: sorted by path for a zip, in stored order for a tar or rar.

    Files of archives `inside` a zip are yielded as if they were in the zip itself, one level deep. Raises CracksError
    if the archive cannot be read, exceeds a limit, or is a .rar and no tool for it is installed.
    """
    shown = f"{inside} in {usage.source}" if inside else str(archive)
    try:
        with archive.open("rb") as opened:
            is_rar = opened.read(6) == b"Rar!\x1a\x07"
        if is_rar:
            yield from _read_rar(archive, usage, shown)
        elif zipfile.is_zipfile(archive):
            yield from _read_zip(archive, usage, is_nested=bool(inside))
        else:
            with unpacked(archive) as content:
                yield from _read_tar(content, usage)
    except NoTarError:
        raise CracksError(
            f"The source {shown} is neither a folder nor a .zip, .tar or .rar archive that can be read. "
            "If it was downloaded, download it again: it may be truncated."
        ) from None
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in REMEDIES:  # a full disk, no permission
            raise
        raise CracksError(f"The archive {shown} cannot be read: {error}. Download or create it again.") from None


class _ZipFile(io.BufferedReader):
    """The file of a zip, whose table of contents zipfile reads at once: the number of its entries is limited."""

    def __init__(self, archive: Path, usage: SourceUsage) -> None:
        super().__init__(io.FileIO(archive))
        self._usage = usage

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, all if it is negative. Raises CracksError over the limit."""
        content = super().read(size)
        if content.count(b"PK\1\2") > self._usage.limits.max_files:
            self._usage.refuse(f"it contains more than {self._usage.limits.max_files:,} files", "max_files")
        return content


def _read_zip(archive: Path, usage: SourceUsage, *, is_nested: bool) -> Iterator[Entry]:
    with _ZipFile(archive, usage) as file, zipfile.ZipFile(file) as opened:
        entries = sorted(opened.infolist(), key=lambda entry: entry.filename)
        # The table of contents suffices: a decompression bomb is refused before anything is unpacked.
        for entry in entries:
            usage.add_file()
            usage.add_bytes(entry.file_size)
        if sum(entry.compress_size for entry in entries) > archive.stat().st_size:
            raise zipfile.BadZipFile("its files overlap")
        for entry in entries:
            path = clean_path(entry.filename)
            if path == "." or entry.is_dir():  # in this order, because is_dir fails on an empty name
                continue
            if reason := left_out_reason(path):
                yield Entry(path, None, reason, is_left_out=True)
            elif reason := _zip_rejection_reason(entry, path):
                yield Entry(path, None, reason)
            elif is_archive(path) and not is_nested:
                yield from _read_nested(opened, entry, path, usage)
            else:
                yield _zip_entry(opened, entry, path, usage.limits)


def _zip_rejection_reason(entry: zipfile.ZipInfo, path: str) -> str:
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        return "a link or a device, not a file"
    if entry.flag_bits & 1:
        return "protected by a password. Unpack it, and use the folder as the source"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # with other methods, zipfile may unpack more than the size in the table of contents
        method = ZIP_METHODS.get(entry.compress_type, f"method {entry.compress_type}")
        return f"compressed by {method}, not by Deflate. Unpack it, and use the folder as the source"
    return rejection_reason(path)


def _zip_entry(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str, limits: Limits) -> Entry:
    if entry.file_size > limits.max_file_mb * MB:
        return Entry(path, None, f"larger than {limits.max_file_mb} MB")
    try:
        with opened.open(entry) as content:
            # unpacks no more than this; the extra byte makes zipfile verify the checksum of an empty file
            return Entry(path, content.read(entry.file_size + 1))
    except DAMAGED as error:
        return Entry(path, None, f"damaged in the archive: {error}")


def _read_nested(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str, usage: SourceUsage) -> Iterator[Entry]:
    with tempfile.NamedTemporaryFile(suffix=Path(entry.filename).suffix) as inner:
        with opened.open(entry) as content:
            shutil.copyfileobj(content, inner)
        inner.flush()
        yield from read_archive(Path(inner.name), usage, path)


def _read_tar(content: IO[bytes], usage: SourceUsage) -> Iterator[Entry]:
    for member, read in read_members(content, usage.add_bytes):
        path = clean_path(member.name)
        usage.add_file()
        if not member.issparse():  # which can have any size without content
            usage.expect(member.size)
        if member.isdir():
            continue
        if reason := left_out_reason(path):
            yield Entry(path, None, reason, is_left_out=True)
            continue
        reason = rejection_reason(path)
        if not member.isfile():
            reason = "a link or a device, not a file"
        elif member.issparse():
            reason = "a sparse file"
        elif member.size > usage.limits.max_file_mb * MB:
            reason = f"larger than {usage.limits.max_file_mb} MB"
        yield Entry(path, None if reason else read(), reason)


def _read_rar(archive: Path, usage: SourceUsage, shown: str) -> Iterator[Entry]:
    """Yield the files of a rar, which bsdtar converts to a tar stream: one process, nothing on disk."""
    tool = shutil.which("bsdtar")
    if tool is None:
        raise CracksError(
            f"{shown} is a .rar archive, and no tool that reads it is installed. Install bsdtar (on Debian and "
            "Ubuntu: apt-get install libarchive-tools), or unpack the archive and use the folder as the source."
        )
    command = [tool, "-c", "-f", "-", f"@{archive}"]
    in_unicode = {**os.environ, "LC_ALL": "C.UTF-8"}  # otherwise bsdtar warns about every name that is not ASCII
    problem = ""
    # Messages go to a file: bsdtar would block on a full pipe.
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, env=in_unicode) as process,
    ):
        try:
            yield from _read_tar(process.stdout, usage)  # type: ignore[arg-type]  # it is a pipe
        except tarfile.ReadError as error:
            problem = str(error)
            process.terminate()
        except BaseException:
            process.kill()
            raise
        process.communicate()
        messages.seek(0)
        # the message of bsdtar is more specific
        problem = messages.read().decode(errors="replace").strip() or problem
    if problem or process.returncode:
        raise CracksError(f"The archive {shown} cannot be read: {problem}. Download or create it again.")
