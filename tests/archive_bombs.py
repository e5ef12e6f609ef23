"""Writes small archives that would fill the memory or the time of whoever reads them."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib


def _gzipped(path, blocks):
    with gzip.open(path, "wb", 6) as opened:
        opened.write(tarfile.TarInfo("first.jpg").tobuf())
        for block in blocks:
            opened.write(block)
    return path


def tar_of_comments(path, n=2000, kind=tarfile.XHDTYPE):
    """Write n empty files, each with a comment of 0.99 MB; or so many global headers, each with a name of its own."""

    def blocks():
        for number in range(n):
            name = f"{number}".encode() if kind == tarfile.XGLTYPE else b"comment"
            length = 990_000
            record = b"%d %s=" % (length, name)
            record = record.ljust(length - 1, b"x") + b"\n"
            header = tarfile.TarInfo("pax")
            header.type, header.size = kind, length
            yield header.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-length % 512)
            yield tarfile.TarInfo(f"{number}.jpg").tobuf(tarfile.USTAR_FORMAT)
        yield bytes(1024)

    return _gzipped(path, blocks())


def tar_of_nested_comments(path, n=300):
    """Write a file with n headers of metadata in front of it, each of 0.99 MB."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 990_000
    record = b"990000 comment=".ljust(990_000 - 1, b"x") + b"\n" + bytes(-990_000 % 512)
    return _gzipped(path, [*[header.tobuf() + record] * n, tarfile.TarInfo("a.jpg").tobuf(), bytes(1024)])


def tar_of_digits(path, n=999_000):
    """Write a file whose size has a million digits in its metadata."""
    record = b"%d size=" % n
    record = record.ljust(n - 1, b"9") + b"\n"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, n
    padding = bytes(-n % 512)
    return _gzipped(path, [header.tobuf(), record, padding, tarfile.TarInfo("a.jpg").tobuf(), bytes(1024)])


def tar_of_sparse_pieces(path, n_mb=300):
    """Write a sparse file whose list of pieces is of so many MB."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[482] = 1  # the list goes on
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:512]))
    block = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    return _gzipped(path, [bytes(header), *[block * 2000] * n_mb, bytes(1024)])


def tar_of_a_sparse_map(path, n_mb=300):
    """Write a sparse file of PAX that has a hundred million pieces."""
    record = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    file = tarfile.TarInfo("a.jpg")
    file.size = n_mb * 1_000_000
    start = header.tobuf() + record + bytes(-len(record) % 512) + file.tobuf()
    return _gzipped(path, [start, b"99999999\n", *[b"1\n" * 500_000] * n_mb, bytes(1024)])


def zip_of_small_files(path, n=2200, n_bytes=9_000_000):
    """Write n files of zeros whose content is stored once: they overlap if they are larger than the zip."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(bytes(n_bytes)) + packed.flush()
    crc = zlib.crc32(bytes(n_bytes))
    return _zip_of_one_content(path, n, data, crc, n_bytes)


def zip_of_empty_blocks(path, n=2000, n_mb=20):
    """Write n empty files that share so many MB of deflated nothing."""
    return _zip_of_one_content(path, n, b"\0\0\0\xff\xff" * (n_mb * 200_000) + b"\3\0", 0, 0)


def zip_of_many_names(path, n):
    """Write a zip whose table of contents has n files; they all begin at the same place."""
    return _zip_of_one_content(path, n, b"", 0, 0, method=0)


def _zip_of_one_content(path, n, data, crc, n_bytes, method=8):
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, method, 0, 0, crc, len(data), n_bytes, 0, 0) + data
    names = (f"{number:x}".encode() for number in range(n))
    table = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, method, 0, 0, crc, len(data), n_bytes, len(name), 0, 0, 0, 0, 0, 0
        )
        + name
        for name in names
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(n, 65535), min(n, 65535), len(table), len(local), 0)
    path.write_bytes(local + table + end)
    return path


def zip_in_zip(path, inner):
    """Write a zip that contains another."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.write(inner, "inner.zip")
    return path


def many_empty_streams(path, opener, n):
    """Write n empty streams of a compression, one behind the other."""
    buffer = io.BytesIO()
    with opener(buffer, "wb"):
        pass
    path.write_bytes(buffer.getvalue() * n)
    return path
