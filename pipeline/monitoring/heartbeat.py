"""The heartbeat of the schedules: a file that the process serving them renews every 30 seconds."""

import json
import time
from pathlib import Path

from pipeline.files import write_json
from pipeline.project import project_root

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
    try:
        return float(json.loads(heartbeat_file().read_text(encoding="utf-8"))["time_s"])
    except FileNotFoundError:
        return None


def heartbeat_age_s(now_s: float | None = None) -> float | None:
    """Return the seconds since the last heartbeat, None if there is none."""
    last_s = last_beat_s()
    return None if last_s is None else max(0.0, (time.time() if now_s is None else now_s) - last_s)
