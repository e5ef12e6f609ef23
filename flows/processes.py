"""Who holds what: processes that are known again after their id was given to another, and groups that end as one."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
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


def with_variable(name: str) -> Iterator[tuple[psutil.Process, str]]:
    """Yield the processes of this user that have an environment variable, each with its value."""
    for process in psutil.process_iter():
        try:
            value = process.environ().get(name)
        except (psutil.Error, OSError):  # gone meanwhile, or someone else's
            continue
        if value is not None:
            yield process, value


def end_group(group: int) -> None:
    """Kill every process of a group; one that is gone already is fine."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def end_tree(process: psutil.Process, patience_s: float) -> None:
    """Ask a process to end, and kill what of it and its children is left when patience runs out."""
    family = [process, *process.children(recursive=True)]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    for member in psutil.wait_procs(family, timeout=patience_s)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def end_children(patience_s: float) -> None:
    """Ask each child of this process to end, and kill what is left when patience runs out."""
    for child in psutil.Process().children():
        end_tree(child, patience_s)
