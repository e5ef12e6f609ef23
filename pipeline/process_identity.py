"""Identify processes by id, start time and host, because an operating system reuses process ids."""

import os
import socket
from typing import TypedDict

import psutil

# Two readings of a process's start time differ by this much if the clock was adjusted between them. The operating
# system does not reuse an id so soon.
TOLERANCE_S = 30


class ProcessIdentity(TypedDict):
    """A process of a machine, as written to a file. It may have ended when the file is read."""

    pid: int
    started_s: float
    host: str


def this_process() -> ProcessIdentity:
    """Return the identity of the current process."""
    return identity_of(os.getpid())


def identity_of(pid: int) -> ProcessIdentity:
    """Return the identity of a process of this machine. Raises psutil.NoSuchProcess."""
    return {"pid": pid, "started_s": psutil.Process(pid).create_time(), "host": socket.gethostname()}


def is_alive(identity: ProcessIdentity) -> bool:
    """Return whether the process still runs on this machine; another process with the same id does not count."""
    try:
        process = psutil.Process(identity["pid"])
        is_same = abs(process.create_time() - identity["started_s"]) < TOLERANCE_S
        return identity["host"] == socket.gethostname() and is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_gone(identity: ProcessIdentity) -> bool:
    """Return whether the process ran on this machine and has ended; False for processes of other machines."""
    return identity["host"] == socket.gethostname() and not is_alive(identity)
