"""Monitor production: compare the photos since the last window with the images the monitored model was trained on.

A window closes when it has enough photos, and no more often than `monitor.windows_per_month`, which the stated rate of
false alarms is based on. One alert is sent while drift lasts, with the images most worth labelling.
"""

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, date2num

from pipeline.files import read_json, write_json, write_text
from pipeline.monitoring.drift import DriftComparison, can_alarm, compare, photo_statistics
from pipeline.monitoring.labelling import export_most_worth_labelling
from pipeline.monitoring.monitored_model import MonitoredModel, monitored_model
from pipeline.monitoring.notify import notify
from pipeline.monitoring.prediction_log import IMAGE_STATISTICS, PredictionLog
from pipeline.page import COLOURS, svg, template
from pipeline.params import Monitor, Params
from pipeline.project import LOG_FOLDER, MONITORING_STATE, REPORTS, TO_LABEL

log = logging.getLogger(__name__)

Verdict = Literal["drift", "no drift", "too few photos", "too early"]

MONTH = timedelta(days=30)
MAX_WINDOWS_KEPT = 200
PAGE = REPORTS / "drift.html"  # the report of the last window
N_BINS = 24
# Visible on both white and black.
IMAGE_COLOURS = {
    "text": "#808890",
    "muted": "#808890",
    "line": "#80889055",
    "series-0": "#3b82c4",
    "series-1": "#e0692f",
}


@dataclass(frozen=True)
class Finding:
    """Result of one check: the verdict, an explanation, and the comparison with a data set if one was made."""

    verdict: Verdict
    lines: list[str]
    dataset: str | None = None
    comparison: DriftComparison | None = None


def windows_plot_uri(root: Path) -> str | None:
    """Return a plot of all windows as a data URI with fixed colours, for use outside a page; None without a window."""
    windows = _read_state(root)["windows"]
    if not windows:
        return None
    drawn = str(_windows_plot(windows))
    for name, colour in IMAGE_COLOURS.items():
        drawn = drawn.replace(f"var(--{name})", colour)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"


def check_window(rows: pd.DataFrame, monitored: MonitoredModel, monitor: Monitor) -> Finding:
    """Compare the rows of one window with each data set the model was trained on.

    The verdict is about the most similar one. A window has drifted if it differs from all of them, so the rate of false
    alarms holds for windows from any of them.
    """
    n_photos = rows["photo"].nunique()
    known = {str(name): tiles for name, tiles in monitored.reference.groupby("dataset")}
    n_known = [tiles["photo"].nunique() for tiles in known.values()]
    if not all(can_alarm(n, n_photos, monitor) for n in n_known):
        line = (
            f"{n_photos} photos since the last window: too few for an alarm. At least {monitor.window_photos} are "
            f"needed, and more if the model was trained on few ({min(n_known)})."
        )
        return Finding("too few photos", [line])
    compared = [(name, compare(tiles, rows, monitor)) for name, tiles in known.items()]
    name, comparison = max(compared, key=lambda pair: pair[1].p_value)
    chance = f"p-value {100 * comparison.p_value:.2f} %, the limit is {100 * comparison.alpha:.2f} %"
    if not comparison.has_drifted:
        return Finding("no drift", [f"{n_photos} photos are similar to those of {name} ({chance})."], name, comparison)
    lines = [
        f"{n_photos} photos differ from those version {monitored.version} was trained on; {name} is most similar. "
        f"Changed: {', '.join(comparison.drifted_statistics)} ({chance}).",
        "Without labels for such images, retraining would give the same model.",
    ]
    return Finding("drift", lines, name, comparison)


def run(params: Params, root: Path, now: datetime) -> Finding:
    """Check the photos from the last window until `now`, store the result, and send an alert once if they have drifted.

    Raises CracksError if no model is registered, or its reference is missing.
    """
    monitor, state = params.monitor, _read_state(root)
    monitored = monitored_model(params.register_as.name)
    ends = [(datetime.fromisoformat(window["end"]), window["version"]) for window in state["windows"]]
    ends = [(end, version) for end, version in ends if end <= now]  # a later one is of a clock that was set back
    since = max((end for end, version in ends if version == monitored.version), default=None)
    closes = ends[-1][0] + MONTH / monitor.windows_per_month if ends else now
    if now < closes:
        line = f"The last window closed on {since or closes:%d %B}, the next one on {closes:%d %B}."
        return Finding("too early", [line])
    rows = PredictionLog(root / LOG_FOLDER, monitor.log_max_mb).read(since, now, monitored.version)
    finding = check_window(rows, monitored, monitor)
    log.info("%s: %s", finding.verdict, " ".join(finding.lines))
    if finding.comparison is None:
        return finding
    window = _record(finding.verdict, finding.comparison, monitored.version, now)
    windows = [*state["windows"], window][-MAX_WINDOWS_KEPT:]
    compared_with = monitored.reference[monitored.reference["dataset"] == finding.dataset]
    page = render_drift(finding.comparison, compared_with, rows, windows, finding.lines, is_drawn=params.is_demo)
    write_text(root / PAGE, page)
    # Sent before it is recorded: a crash in between sends the alert twice, not never.
    told = finding.verdict == "drift" and (bool(state["told"]) or _notify(finding, rows, monitored, monitor, root))
    write_json(root / MONITORING_STATE, {"told": told, "windows": windows})
    return finding


def _read_state(root: Path) -> dict[str, Any]:
    """Return {"told": whether an alert about the present drift was sent, "windows": records, oldest first}."""
    return dict(read_json(root / MONITORING_STATE, {"told": False, "windows": []}))


def _record(verdict: Verdict, comparison: DriftComparison, version: str, now: datetime) -> dict[str, Any]:
    scores = zip(comparison.scores["statistic"], comparison.scores["score"], strict=True)
    return {
        "end": now.isoformat(),
        "version": version,
        "verdict": verdict,
        "n_photos": comparison.n_photos,
        "p_value": comparison.p_value,
        "scores": {name: round(float(score), 3) for name, score in scores},
        "limit": round(comparison.limit, 3),
    }


def _notify(finding: Finding, rows: pd.DataFrame, monitored: MonitoredModel, monitor: Monitor, root: Path) -> bool:
    """Export the images most worth labelling and send an alert; return whether it was delivered."""
    to_label = export_most_worth_labelling(rows, monitored, monitor.n_to_label, root / TO_LABEL)
    lines = [*finding.lines, to_label, f"Report: {root / PAGE}"]
    return notify("Drift: photos in production differ from those the model was trained on", lines)


def _windows_plot(windows: Sequence[dict[str, Any]]) -> Markup:
    """Plot the largest score of each window, divided by its limit, over time."""
    ends = np.array([date2num(datetime.fromisoformat(window["end"])) for window in windows])
    shares = np.array([max(window["scores"].values()) / window["limit"] for window in windows])
    drifted = np.array([window["verdict"] == "drift" for window in windows])

    def draw(axes: Axes) -> None:
        axes.axhline(1, color=COLOURS["muted"], linestyle=":", linewidth=1)
        axes.plot(ends, shares, color=COLOURS["muted"], linestyle="-", linewidth=0.8)
        for chosen, colour, marker in ((~drifted, "series-0", "o"), (drifted, "series-1", "D")):
            axes.plot(ends[chosen], shares[chosen], color=COLOURS[colour], marker=marker, linestyle="")
        axes.xaxis_date()
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        axes.set(ylabel="largest score / limit")
        axes.set_ylim(min(0.0, float(shares.min())), max(1.2, 1.1 * float(shares.max())))

    return svg("windows", draw, (4.8, 2.4))


def _statistic_plot(name: str, reference: "pd.Series[float]", window: "pd.Series[float]") -> Markup:
    """Plot a histogram of an image statistic over the photos trained on, with a line for each photo of the window."""

    def draw(axes: Axes) -> None:
        together = pd.concat([reference, window])
        edges = np.linspace(together.min(), together.max() or 1.0, N_BINS + 1).tolist()
        axes.hist(reference, edges, color=COLOURS["series-0"], alpha=0.55)
        for value in window:
            axes.axvline(value, color=COLOURS["series-1"], linewidth=1.2)
        axes.set(xlabel=name, ylabel="photos trained on")

    return svg(name, draw)


def render_drift(
    comparison: DriftComparison,
    reference: pd.DataFrame,
    window: pd.DataFrame,
    windows: Sequence[dict[str, Any]],
    lines: Sequence[str],
    *,
    is_drawn: bool,
) -> str:
    """Return the HTML report of the last window.

    `reference` and `window` have a row per tile: photo, image statistics, embedding. `windows` are the records of all
    windows, oldest first, including this one; `lines` are the verdict in words.
    """
    before, now = photo_statistics(reference), photo_statistics(window)
    return template("monitoring/drift.html.j2").render(
        comparison=comparison,
        rows=comparison.scores.sort_values("score", ascending=False).to_dict("records"),
        plots={name: _statistic_plot(name, before[name], now[name]) for name in IMAGE_STATISTICS},
        windows_plot=_windows_plot(windows),
        n_windows=len(windows),
        lines=lines,
        is_drawn=is_drawn,
    )
