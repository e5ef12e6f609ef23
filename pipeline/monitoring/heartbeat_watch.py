"""Whoever is alive watches the schedules' sign of life, and tells someone once that they died, and once that they live.

The API watches, and so does the process of the schedules: it gives no sign either while its Prefect server is away.
What was told is kept beside the sign of life, so that of several watchers one tells, and one that starts again does not
repeat it.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.files import write_json
from pipeline.monitoring.heartbeat import INTERVAL_S, LATE_S, heartbeat_file, last_beat_s
from pipeline.monitoring.notify import notify

log = logging.getLogger(__name__)


class HeartbeatWatch:
    """What one process has seen of the sign of life.

    Schedules count as dead when they gave no sign for LATE_S while it watched. The age of the last sign would not do:
    when a machine wakes up or has just started, every sign is old, and the next one is on its way.
    """

    def __init__(self) -> None:
        self._beat_s: float | None = None  # the last sign of life, since the epoch
        self._since_s = 0.0  # when it was seen first
        self._alert_after_s: float = LATE_S  # doubled by every try, for those that reach nobody

    def check(self, now_s: float) -> None:
        """Look once, and tell what is new.

        Args:
            now_s: of a clock that nobody sets and that stands while the machine sleeps, as `time.monotonic` does.
        """
        beat_s = last_beat_s()
        if beat_s is None:  # never served, or ended by a person
            return
        if beat_s != self._beat_s:
            self._beat_s, self._since_s, self._alert_after_s = beat_s, now_s, LATE_S
        silent_s = now_s - self._since_s
        if silent_s < LATE_S:
            alert_resumed(beat_s)
        elif silent_s >= self._alert_after_s:
            self._alert_after_s *= 2
            alert_stopped(beat_s)


def watch_heartbeat(stopping: threading.Event) -> None:
    """Look again and again until told to stop; nothing that goes wrong ends it."""
    watch = HeartbeatWatch()
    while not stopping.is_set():
        try:
            watch.check(time.monotonic())
        except Exception:
            log.exception("The sign of life of the schedules cannot be watched")
        stopping.wait(INTERVAL_S)


def alert_stopped(beat_s: float) -> None:
    """Tell someone that `beat_s`, since the epoch, was the last sign of life, unless someone was told."""
    with _alert_lock():
        if _alerted_beat_s() != beat_s and notify(
            "Concrete cracks: the schedules have died",
            [
                f"Their last sign of life is of {_shown(beat_s)}: `python -m flows` has ended, or its Prefect server "
                "does not answer.",
                "Until they live again nothing is retrained or monitored by itself.",
                "`make status` says what runs, .prefect/logs/ why not; `make up` starts what is missing. On a shared "
                "server: `docker compose ps`, `logs` and `up`.",
            ],
        ):
            write_json(_alert_file(), beat_s)


def alert_resumed(beat_s: float) -> None:
    """Tell someone that there is a sign of life again, if someone was told of the death before it."""
    if _alerted_beat_s() in (None, beat_s):
        return
    with _alert_lock():
        if _alerted_beat_s() is not None and notify(
            "Concrete cracks: the schedules are back",
            [f"They gave a sign of life at {_shown(beat_s)}. What was missed meanwhile becomes one run."],
        ):
            _alert_file().unlink()


def _shown(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def _alert_file() -> Path:
    return heartbeat_file().with_name("heartbeat-told.json")


def _alerted_beat_s() -> float | None:
    """Return which sign of life was told to be the last one, None where none was, or the return was told too."""
    try:
        return float(json.loads(_alert_file().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


@contextmanager
def _alert_lock() -> Iterator[None]:
    """Let one process of the project at a time tell."""
    with heartbeat_file().with_name("heartbeat.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
