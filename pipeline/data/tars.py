"""Read untrusted tars as streams: no header is kept, and every byte counts, also those between the files."""

import bz2
import gzip
import io
import lzma
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

# Of the names and other metadata before a file, which tarfile keeps in memory.
MAX_METADATA_BYTES = 1_000_000
LONG_NUMBER = re.compile(rb"\d{100}")
# By the first bytes of a file.
UNPACKERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class NoTarError(tarfile.ReadError):
    """Not even the first header can be read."""


class _Header(tarfile.TarInfo):
    """A header of a tar. Rejects numbers of 100 digits, and negative sizes, which make tarfile read backwards."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError("it is damaged")
        return header

    def _proc_pax(self, opened: Any) -> tarfile.TarInfo:
        # Before Python 3.11.10, tarfile takes hours for a million digits.
        content = opened.fileobj.read(-(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        if LONG_NUMBER.search(content):
            raise tarfile.ReadError("it is damaged")
        opened.fileobj.buf = content + opened.fileobj.buf
        opened.fileobj.pos -= len(content)
        return super()._proc_pax(opened)  # type: ignore[misc,no-any-return]  # has no type


class _Stream(io.RawIOBase):
    """The bytes of a tar, counted while they are read, with a limit between two files."""

    def __init__(self, unpacked: IO[bytes], count: Callable[[int], None]) -> None:
        self._unpacked, self._count = unpacked, count
        self._n_read = 0
        self.expect_file(0)

    def expect_file(self, offset: float) -> None:
        """Allow to read on as far as a file can begin whose metadata begin at `offset`."""
        self._stops_at = offset + MAX_METADATA_BYTES + tarfile.RECORDSIZE  # which tarfile reads ahead

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes. Raises ReadError if metadata are too large."""
        content = self._unpacked.read(size)
        self._n_read += len(content)
        self._count(len(content))
        if self._n_read > self._stops_at:
            raise tarfile.ReadError("a file has more than 1 MB of metadata")
        return content


def unpacked(archive: Path) -> IO[bytes]:
    """Open a file to read what it contains; unpacked if it is packed by gzip, bzip2 or xz."""
    with archive.open("rb") as opened:
        start = opened.read(6)
    unpackers = [unpacker for magic, unpacker in UNPACKERS.items() if start.startswith(magic)]
    content: IO[bytes] = unpackers[0](archive) if unpackers else archive.open("rb")
    return content


def read_members(
    content: IO[bytes], count: Callable[[int], None]
) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """Yield the header of each member of a tar, and a function that returns its content before the next is read.

    `count` is called with each number of bytes that is read, and can raise to end it. Raises TarError if the tar is
    damaged, NoTarError if it is none.
    """
    stream = _Stream(content, count)
    with _opened(stream) as opened:
        while (member := opened.next()) is not None:
            opened.members, opened.pax_headers = [], {}  # type: ignore[attr-defined]  # tarfile keeps all headers
            if member.size < 0:  # metadata can override the size of the header
                raise tarfile.ReadError("it is damaged")
            stream.expect_file(opened.offset)
            yield member, lambda member=member: opened.extractfile(member).read()  # type: ignore[misc,union-attr]
        stream.expect_file(math.inf)
        _check_end(opened.fileobj)  # type: ignore[arg-type]  # it is open


def _opened(stream: _Stream) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header)
    except tarfile.TarError as error:
        raise NoTarError(str(error)) from None


def _check_end(rest: IO[bytes]) -> None:
    """Raise ReadError unless only the end marker and padding follow the last header that could be read.

    tarfile treats a damaged or missing header as the end, and then ignores checksums that are stored after it.
    """
    block = rest.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is truncated")
    while block:
        if any(block):
            raise tarfile.ReadError("it is damaged")
        block = rest.read(2**20)
