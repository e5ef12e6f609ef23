"""Processes that are known again after their id was given to another one."""

import os
import socket
from typing import TypedDict

import psutil

# Of two readings of one process's start, which a step of the clock moves; an id is not given away again so soon.
TOLERANCE_S = 30


class Holder(TypedDict):
    """A process of a machine, written down by one that may be gone when it is read."""

    pid: int
    started_s: float
    host: str


def this_process() -> Holder:
    """Return the process that runs this."""
    return {"pid": os.getpid(), "started_s": psutil.Process().create_time(), "host": socket.gethostname()}


def holder_of(pid: int) -> Holder:
    """Return a process of this machine. Raises psutil.NoSuchProcess."""
    return {"pid": pid, "started_s": psutil.Process(pid).create_time(), "host": socket.gethostname()}


def is_alive(holder: Holder) -> bool:
    """Return whether the process still runs on this machine; another one with its id does not count."""
    try:
        process = psutil.Process(holder["pid"])
        is_same = abs(process.create_time() - holder["started_s"]) < TOLERANCE_S
        return holder["host"] == socket.gethostname() and is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_gone(holder: Holder) -> bool:
    """Return whether the process ran on this machine and does no more; of another machine's nothing can be said."""
    return holder["host"] == socket.gethostname() and not is_alive(holder)
