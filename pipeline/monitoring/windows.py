"""Watching production: the photos since the last window against what the model in production was trained on.

A window closes when it has enough photos, and no more often than `monitor.windows_per_month`, on which the stated rate
of false alarms rests. Drift is told once as long as it lasts, with the images most worth labelling. What was found is
kept in data/monitoring/ and shown by reports/drift.html.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipeline.files import write_json, write_text
from pipeline.monitoring.drift import Comparison, can_alarm, compare
from pipeline.monitoring.drift_page import render_drift, windows_image
from pipeline.monitoring.labelling import export_most_worth_labelling
from pipeline.monitoring.monitored_model import MonitoredModel, monitored_model
from pipeline.monitoring.notify import notify
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import Monitor, Params
from pipeline.project import LOG_FOLDER, MONITORING_STATE, REPORTS, TO_LABEL

log = logging.getLogger(__name__)

Verdict = Literal["drift", "no drift", "too few photos", "too early"]

MONTH = timedelta(days=30)
MAX_WINDOWS_KEPT = 200
PAGE = REPORTS / "drift.html"  # the report of the last window


@dataclass(frozen=True)
class Finding:
    """What came of one look: the verdict, why in a few lines, and where one was made the comparison with a data set."""

    verdict: Verdict
    lines: list[str]
    dataset: str | None = None
    comparison: Comparison | None = None


def read_state(path: Path) -> dict[str, Any]:
    """Return {"told": whether the present drift was told, "windows": one record each, oldest first}."""
    if not path.exists():
        return {"told": False, "windows": []}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def windows_plot_uri(root: Path) -> str | None:
    """Return the windows so far as a picture, a data URI; None where there is none yet."""
    windows = read_state(root / MONITORING_STATE)["windows"]
    return windows_image(windows) if windows else None


def most_similar_dataset(
    rows: pd.DataFrame, reference: pd.DataFrame, monitor: Monitor
) -> tuple[str, Comparison] | None:
    """Compare a window with each data set trained on; return the one that it is most like, and the comparison with it.

    A window has drifted where it is unlike every one of them, so the rate of false alarms holds for windows from any.
    None where a data set has too few photos, or the window has, to ever tell them apart.
    """
    n_photos = rows["photo"].nunique()
    known = {str(name): tiles for name, tiles in reference.groupby("dataset")}
    if not all(can_alarm(tiles["photo"].nunique(), n_photos, monitor) for tiles in known.values()):
        return None
    compared = [(name, compare(tiles, rows, monitor)) for name, tiles in known.items()]
    return max(compared, key=lambda pair: pair[1].p_value)


def check_window(rows: pd.DataFrame, monitored: MonitoredModel, monitor: Monitor) -> Finding:
    """Compare the rows of the prediction log of one window with what the model was trained on."""
    n_photos = rows["photo"].nunique()
    found = most_similar_dataset(rows, monitored.reference, monitor)
    if found is None:
        n_known = monitored.reference.groupby("dataset")["photo"].nunique().min()
        return Finding(
            "too few photos",
            [
                f"{n_photos} photos since the last window: too few for an alarm. At least {monitor.window_photos} are "
                f"needed, and more where few were trained on ({n_known})."
            ],
        )
    name, comparison = found
    chance = f"chance alone does as much in {comparison.p_value:.2%} of windows, the limit is {comparison.alpha:.2%}"
    if comparison.has_drifted:
        lines = [
            f"{n_photos} photos are unlike what version {monitored.version} was trained on, and least unlike {name}: "
            f"{', '.join(comparison.drifted_statistics)} ({chance}).",
            "Without labels of such images, training again would give the same model.",
        ]
        return Finding("drift", lines, name, comparison)
    return Finding("no drift", [f"{n_photos} photos are like those of {name} ({chance})."], name, comparison)


def next_window(
    windows: Sequence[dict[str, Any]], version: str, monitor: Monitor
) -> tuple[datetime | None, datetime | None]:
    """Return from when on photos belong to the next window of this version, and when it may close; None: any time."""
    ends = [datetime.fromisoformat(window["end"]) for window in windows]
    mine = [end for end, window in zip(ends, windows, strict=True) if window["version"] == version]
    return (mine[-1] if mine else None), (ends[-1] + MONTH / monitor.windows_per_month if ends else None)


def record(finding: Finding, version: str, now: datetime) -> dict[str, Any]:
    """Return what is kept of a window."""
    comparison = finding.comparison
    assert comparison is not None  # noqa: S101 - only windows that were compared are kept
    scores = comparison.scores.set_index("statistic")["score"]
    return {
        "end": now.isoformat(),
        "version": version,
        "verdict": finding.verdict,
        "n_photos": comparison.n_photos,
        "p_value": comparison.p_value,
        "scores": {name: round(float(score), 3) for name, score in scores.items()},
        "limit": round(comparison.limit, 3),
    }


def notify_drift(finding: Finding, rows: pd.DataFrame, monitored: MonitoredModel, monitor: Monitor, root: Path) -> bool:
    """Export the images most worth labelling and tell someone of the drift; return whether the message arrived."""
    to_label = export_most_worth_labelling(rows, monitored, monitor.n_to_label, root / TO_LABEL)
    lines = [*finding.lines, to_label, f"Pictures: {root / PAGE}"]
    return notify("Drift: production sees images unlike those it was trained on", lines)


def run(params: Params, root: Path, now: datetime) -> Finding:
    """Look at what production saw since the last window, keep what was found, and tell someone of drift, once.

    Args:
        params: whose `monitor` says when an alarm is one.
        root: the project's folder.
        now: end of the window, with a time zone.

    Raises:
        CracksError: nothing is registered, or without what it was trained on.
        UnavailableError: the tracking server does not answer.
    """
    monitor, state = params.monitor, read_state(root / MONITORING_STATE)
    monitored = monitored_model(params.register_as.name)
    since, closes = next_window(state["windows"], monitored.version, monitor)
    if closes is not None and now < closes:
        return Finding(
            "too early", [f"The last window closed on {since or closes:%d %B}, the next one on {closes:%d %B}."]
        )
    rows = PredictionLog(root / LOG_FOLDER, monitor.log_max_mb).read(since, now, monitored.version)
    finding = check_window(rows, monitored, monitor)
    log.info("%s: %s", finding.verdict, " ".join(finding.lines))
    if finding.comparison is None:
        return finding
    windows = [*state["windows"], record(finding, monitored.version, now)][-MAX_WINDOWS_KEPT:]
    known = monitored.reference[monitored.reference["dataset"] == finding.dataset]
    page = render_drift(finding.comparison, known, rows, windows, finding.lines, is_drawn=params.is_demo)
    write_text(root / PAGE, page)
    # Told before it is noted as told: a crash in between tells twice, not never.
    told = finding.verdict == "drift" and (bool(state["told"]) or notify_drift(finding, rows, monitored, monitor, root))
    write_json(root / MONITORING_STATE, {"told": told, "windows": windows})
    return finding
