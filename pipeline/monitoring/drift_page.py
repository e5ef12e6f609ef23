"""The drift report: a window of photos compared with the images the model was trained on."""

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, date2num

from pipeline.monitoring.drift import DriftComparison, photo_statistics
from pipeline.monitoring.prediction_log import IMAGE_STATISTICS
from pipeline.page import COLOURS, svg, template

N_BINS = 24
# Visible on both white and black.
IMAGE_COLOURS = {
    "text": "#808890",
    "muted": "#808890",
    "line": "#80889055",
    "series-0": "#3b82c4",
    "series-1": "#e0692f",
}


def windows_plot(windows: Sequence[dict[str, Any]]) -> Markup:
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


def windows_image(windows: Sequence[dict[str, Any]]) -> str:
    """Return `windows_plot` as a data URI with fixed colours, for use outside a page."""
    drawn = str(windows_plot(windows))
    for name, colour in IMAGE_COLOURS.items():
        drawn = drawn.replace(f"var(--{name})", colour)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"


def statistic_plot(name: str, reference: "pd.Series[float]", window: "pd.Series[float]") -> Markup:
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
        plots={name: statistic_plot(name, before[name], now[name]) for name in IMAGE_STATISTICS},
        windows_plot=windows_plot(windows),
        n_windows=len(windows),
        lines=lines,
        is_drawn=is_drawn,
    )
