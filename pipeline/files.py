"""Atomic writes: a killed process leaves no partial file or folder under its final name."""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

# Parts of numpy's messages, "Not enough free space to write 24 bytes" and "24 requested and 8 written".
NUMPY_DISK_FULL = ("free space", " requested and ")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write a file to; on success it replaces `path`, else it is deleted.

    The old file is never opened for writing: under DVC it can be a read-only link into the cache. An OSError without a
    path, as of a full disk, gets this one.
    """
    partial = _partial_path(path)
    try:
        with naming(path):
            yield partial
            partial.replace(path)
    finally:
        _remove(partial)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; as `replacing`."""
    with replacing(path) as partial:
        partial.mkdir()
        yield partial
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _partial_path(path: Path) -> Path:
    """Return a path beside `path` that nothing else writes to: no thread, and no process of another container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(path.parent.absolute())
    process = f"{os.getpid()}@{socket.gethostname()}"
    start = path.name[:40]  # names of files have up to 255 bytes, those of hosts up to 64
    return path.with_name(f".{start}.{secrets.token_hex(4)}-{process}.partial")


@cache
def _remove_left_over(folder: Path) -> None:
    """Remove what killed processes of this machine have left half written in a folder.

    Once in a process, as folders can be large. Processes of other containers, which may share the folder, are not
    known here; `make gc` removes what they have left.
    """
    host = socket.gethostname()
    for left in folder.glob(f".*@{host}.partial"):
        number = re.search(r"-(\d+)@", left.name)
        if number and not _is_running(int(number[1])):
            with suppress(OSError):  # it is of another user, or another process removes it at the same time
                _remove(left)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name `path` if it names no file, as that of a full disk; numpy's gets its number."""
    try:
        yield
    except OSError as error:
        if error.errno is None and any(words in str(error) for words in NUMPY_DISK_FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if error.errno is not None:  # with a name, one without a number would print neither its text nor a number
            error.filename = error.filename or str(path)
        raise


@contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold the lock of the file `path`, which is made if it is missing; other processes wait until the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def name_by_hash(*parts: str | bytes) -> str:
    """Return a name, 16 digits of a hash, for what depends on these parts, one after the other."""
    contents = (part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, default: Any) -> Any:
    """Return what a JSON file holds, or `default` where there is no file. Raises ValueError if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
