"""The heartbeat of the schedules: a file that the process serving them renews, and the watch that alerts when it stops.

The API watches, and so does the process of the schedules, because the heartbeat also stops while its Prefect server is
unavailable. The alert is recorded beside the heartbeat, so that only one of several watchers sends it, and a restarted
watcher does not repeat it.
"""

import logging
import threading
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.files import locked, read_json, write_json
from pipeline.monitoring.notify import notify
from pipeline.project import project_root

log = logging.getLogger(__name__)

INTERVAL_S = 30
LATE_S = 4 * INTERVAL_S  # after so long without a heartbeat, the schedules count as stopped


def heartbeat_file() -> Path:
    """Return the path of the heartbeat file."""
    return project_root() / ".prefect" / "heartbeat.json"


def renew_heartbeat(now_s: float | None = None) -> None:
    """Write the heartbeat with the time `now_s`, in seconds since the epoch; None means now."""
    write_json(heartbeat_file(), {"time_s": time.time() if now_s is None else now_s})


def end_heartbeat() -> None:
    """Delete the heartbeat, so that schedules stopped on purpose cause no alert."""
    heartbeat_file().unlink(missing_ok=True)


def last_beat_s() -> float | None:
    """Return the time of the last heartbeat in seconds since the epoch; None if there is none."""
    beat = read_json(heartbeat_file(), None)
    return beat and float(beat["time_s"])


def heartbeat_age_s(now_s: float | None = None) -> float | None:
    """Return the seconds since the last heartbeat, None if there is none."""
    last_s = last_beat_s()
    return None if last_s is None else max(0.0, (time.time() if now_s is None else now_s) - last_s)


class HeartbeatWatch:
    """Watches the heartbeat in one process: the schedules have stopped after LATE_S without one while it watched.

    The age of the last heartbeat is not enough: after a machine wakes up or starts, it is always old, although the next
    one may be due.
    """

    def __init__(self) -> None:
        self._beat_s: float | None = None  # last heartbeat, since the epoch
        self._since_s = 0.0  # when it was first seen
        self._alert_after_s: float = LATE_S  # doubled by each attempt, in case none is delivered

    def check(self, now_s: float) -> None:
        """Check the heartbeat once, and send a message if its state has changed.

        `now_s` is of a clock that is never set and stops while the machine sleeps, such as `time.monotonic`.
        """
        beat_s = last_beat_s()
        if beat_s is None:  # never started, or stopped on purpose
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
    """Check the heartbeat every INTERVAL_S until `stopping` is set; log any exception and continue."""
    watch = HeartbeatWatch()
    while not stopping.is_set():
        try:
            watch.check(time.monotonic())
        except Exception as error:
            log.error("The heartbeat cannot be checked: %s", error, exc_info=not isinstance(error, OSError))
        stopping.wait(INTERVAL_S)


def alert_stopped(beat_s: float) -> None:
    """Send an alert that the last heartbeat was at `beat_s`, since the epoch, unless it was sent before."""
    with _alert_lock():
        if _alerted_beat_s() != beat_s and notify(
            "Concrete cracks: the schedules have stopped",
            [
                f"The last heartbeat was at {_shown(beat_s)}: `python -m flows` has ended, or its Prefect server does "
                "not answer.",
                "Until the schedules run again, there is no automatic retraining or monitoring.",
                "`make status` shows what runs, .prefect/logs/ has the logs; `make up` starts what is missing. On a "
                "shared server: `docker compose ps`, `logs` and `up`.",
            ],
        ):
            write_json(_alert_file(), beat_s)


def alert_resumed(beat_s: float) -> None:
    """Send a message that the schedules run again, if an alert was sent before."""
    if _alerted_beat_s() in (None, beat_s):
        return
    with _alert_lock():
        if _alerted_beat_s() is not None and notify(
            "Concrete cracks: the schedules are running again",
            [f"Heartbeat at {_shown(beat_s)}. Missed runs of a schedule are replaced by one run."],
        ):
            _alert_file().unlink()


def _shown(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def _alert_file() -> Path:
    return heartbeat_file().with_name("heartbeat-told.json")


def _alerted_beat_s() -> float | None:
    """Return the time of the heartbeat that the open alert is about, None if no alert is open."""
    beat_s: float | None = read_json(_alert_file(), None)
    return beat_s


def _alert_lock() -> AbstractContextManager[object]:
    """Hold the lock under which one process at a time sends messages."""
    return locked(heartbeat_file().with_name("heartbeat.lock"))
