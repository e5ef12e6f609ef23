"""Find processes by environment variable, and end process trees and groups."""

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil


def with_variable(name: str) -> Iterator[tuple[psutil.Process, str]]:
    """Yield (process, value) for each process of this user that has the environment variable."""
    for process in psutil.process_iter():
        try:
            value = process.environ().get(name)
        except (psutil.Error, OSError):  # it has ended, or belongs to another user
            continue
        if value is not None:
            yield process, value


def end_group(group: int) -> None:
    """Kill every process of a group; do nothing if the group has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def end_tree(process: psutil.Process, timeout_s: float) -> None:
    """Terminate a process; after the timeout, kill it and those of its children that are left."""
    family = [process, *process.children(recursive=True)]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    for member in psutil.wait_procs(family, timeout=timeout_s)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
