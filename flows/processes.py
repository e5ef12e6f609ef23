"""Processes that a variable marks, and families and groups of processes that end as one."""

import contextlib
import os
import signal
from collections.abc import Iterator

import psutil


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


def end_tree(process: psutil.Process, timeout_s: float) -> None:
    """Ask a process to end, and kill what of it and its children is left when patience runs out."""
    family = [process, *process.children(recursive=True)]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    for member in psutil.wait_procs(family, timeout=timeout_s)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def end_children(timeout_s: float) -> None:
    """Ask each child of this process to end, and kill what is left when patience runs out."""
    for child in psutil.Process().children():
        end_tree(child, timeout_s)
