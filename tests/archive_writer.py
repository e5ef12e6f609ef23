"""Writes folders and archives of every kind that is read, whole or hostile."""

import io
import struct
import tarfile
import zipfile
import zlib

from pipeline.params import Limits

LIMITS = Limits(max_files=1000, max_total_mb=100, max_file_mb=20, max_expansion=200, max_image_megapixels=10)
TARS = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def limits(**changes):
    return LIMITS.model_copy(update=changes)


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    (path / "empty folder").mkdir()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.mkdir("empty folder")
        for name, content in files.items():
            opened.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def write_tar(path, files, mode, prefix=""):
    with tarfile.open(path, mode) as opened:
        folder = tarfile.TarInfo(prefix + "empty folder")
        folder.type = tarfile.DIRTYPE
        opened.addfile(folder)
        for name, content in files.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))


def _number(n):
    """Give a variable-length integer of RAR5."""
    digits = []
    while n > 127:
        digits.append(n & 127 | 128)
        n >>= 7
    return bytes([*digits, n])


def _block(kind, flags, body, content=b""):
    header = _number(kind) + _number(flags) + (_number(len(content)) if flags & 2 else b"") + body
    header = _number(len(header)) + header
    return struct.pack("<I", zlib.crc32(header)) + header + content


def rar5(files):
    """Give a RAR5 archive whose files are stored, not packed: https://www.rarlab.com/technote.htm."""
    parts = [b"Rar!\x1a\x07\x01\x00", _block(1, 0, _number(0))]
    for name, content in files.items():
        about = _number(4) + _number(len(content)) + _number(0o100644) + struct.pack("<I", zlib.crc32(content))
        about += _number(0) + _number(1) + _number(len(name.encode())) + name.encode()
        parts.append(_block(2, 2, about, content))
    return b"".join([*parts, _block(5, 0, _number(0))])


def write_source(path, kind, files):
    """Write a source of the wanted kind into the folder `path` and return its own path."""
    source = path / ("source" if kind == "folder" else f"source.{kind}")
    if kind == "folder":
        write_folder(source, files)
    elif kind == "zip":
        write_zip(source, files)
    elif kind == "rar":
        source.write_bytes(rar5(files))
    else:
        write_tar(source, files, TARS[kind])
    return source
