"""A sign of life of the schedules: the process that serves them renews a file, and anyone can tell its age."""

import json
import time
from pathlib import Path

from pipeline.files import write_json
from pipeline.project import project_root

INTERVAL_S = 30
LATE_S = 4 * INTERVAL_S  # without a sign for so long, the schedules are taken for dead


def heartbeat_file() -> Path:
    """Return the file that is renewed, under the project's folder."""
    return project_root() / ".prefect" / "heartbeat.json"


def renew_heartbeat(now_s: float | None = None) -> None:
    """Renew the sign of life, at `now_s` since the epoch, by default now."""
    write_json(heartbeat_file(), {"time_s": time.time() if now_s is None else now_s})


def end_heartbeat() -> None:
    """Take the sign of life away: schedules that a person has ended are not dead."""
    heartbeat_file().unlink(missing_ok=True)


def last_beat_s() -> float | None:
    """Return the time of the last sign of life, since the epoch; None where there never was one, or it was ended."""
    try:
        return float(json.loads(heartbeat_file().read_text(encoding="utf-8"))["time_s"])
    except FileNotFoundError:
        return None


def heartbeat_age_s(now_s: float | None = None) -> float | None:
    """Return the seconds since the last sign of life, None where there is none."""
    last_s = last_beat_s()
    return None if last_s is None else max(0.0, (time.time() if now_s is None else now_s) - last_s)
