"""The report that a person reads: one HTML file without scripts that opens offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.metrics import N_ECE_BINS, Labels, Probabilities
from pipeline.page import COLOURS, DASHES, svg, template

MAX_MARKED_EPOCHS = 40  # with more, the marks hide the line

_DIAGONAL: dict[str, Any] = {"color": COLOURS["muted"], "linestyle": ":", "linewidth": 1}


@dataclass(frozen=True)
class Picture:
    """An image that the model got wrong.

    Attributes:
        path: within its data set.
        dataset: name of its data set.
        label: crack or intact, the truth.
        probability: of a crack, 0..1.
        pixels: RGB, uint8, shape (height, width, 3), any size.

    """

    path: str
    dataset: str
    label: str
    probability: float
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _ScoredSet:
    """Images that the chosen candidate was scored on, together."""

    name: str
    labels: Labels
    probabilities: Probabilities

    @property
    def n_crack(self) -> int:
        return int(self.labels.sum())

    @property
    def n_intact(self) -> int:
        return len(self.labels) - self.n_crack

    def count(self, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Count the chosen images, shape (n,), by their true label."""
        return {"crack": int((chosen & self.labels).sum()), "intact": int((chosen & ~self.labels).sum())}

    def confusion(self, threshold: float) -> dict[str, dict[str, int]]:
        """Count images by what the model says, then by what is true."""
        called = self.probabilities >= threshold
        return {"crack": self.count(called), "intact": self.count(~called)}


def render(
    *,
    metrics: dict[str, Any],
    candidates: Mapping[str, Mapping[str, Any]],
    histories: Mapping[str, pd.DataFrame],
    predictions: pd.DataFrame,
    decision: Mapping[str, float],
    mistakes: Sequence[Picture],
) -> str:
    """Return the page: HTML with styles, plots and pictures inside; equal inputs give equal pages.

    Args:
        metrics: demo, trained_on, candidate (the chosen one), split (n_images, n_groups, n_copies, n_excluded, leaks),
            test, and by name of the data set tests and outside. Each set of scores has n, accuracy, f1, auroc,
            balanced_accuracy, ece and threshold; auroc and balanced_accuracy may be None.
        candidates: by name, scores on validation: log_loss, and those of `metrics`.
        histories: by candidate, a row an epoch: step (from 0, over both phases), phase (head or tuning), loss,
            val_loss, accuracy, val_accuracy.
        predictions: a row an image: dataset, split (test or outside), label (crack or intact), probability (0..1).
        decision: review_from <= threshold <= review_to, 0..1.
        mistakes: the worst ones on test, in any order.

    """
    threshold = decision["threshold"]
    scored_sets = _scored_sets(predictions)
    curve_sets = [scored for scored in scored_sets if scored.n_crack and scored.n_intact]
    return template("report.html.j2").render(
        percent=_percent,
        metrics=metrics,
        candidates=candidates,
        decision=decision,
        zones=_zones(scored_sets[0], decision),
        confusions={scored.name: scored.confusion(threshold) for scored in scored_sets},
        legend=[scored.name for scored in curve_sets],
        dashes=DASHES,
        histories=histories,
        training={name: _training_plots(name, history) for name, history in histories.items()},
        roc=_roc_plot(curve_sets, threshold),
        precision_recall=_precision_recall_plot(curve_sets, threshold),
        reliability=_reliability_plot(curve_sets),
        missed=sorted((item for item in mistakes if item.label == "crack"), key=lambda item: item.probability),
        false_alarms=sorted((item for item in mistakes if item.label == "intact"), key=lambda item: -item.probability),
    )


def _percent(part: int, whole: int) -> str:
    """Format a share; only none is 0.0%, only all is 100.0%."""
    if whole == 0:
        return "—"
    if 0 < part < 0.0005 * whole:
        return "<0.1%"
    return ">99.9%" if 0.9995 * whole <= part < whole else f"{part / whole:.1%}"


def _scored_sets(predictions: pd.DataFrame) -> list[_ScoredSet]:
    """Return test as one set, then each outside set."""
    is_test = predictions["split"] == "test"
    parts = [("Test", predictions[is_test])]
    parts += [(f"Outside: {name}", rows) for name, rows in predictions[~is_test].groupby("dataset")]
    return [
        _ScoredSet(name, (rows["label"] == "crack").to_numpy(), rows["probability"].to_numpy()) for name, rows in parts
    ]


def _zones(test: _ScoredSet, decision: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Count test images by what the model says when it may ask a person, then by what is true."""
    low = test.probabilities < decision["review_from"]
    high = test.probabilities >= decision["review_to"]
    return {"intact": test.count(low), "review": test.count(~low & ~high), "crack": test.count(high)}


def _training_plots(name: str, history: pd.DataFrame) -> dict[str, Markup]:
    epochs = history["step"] + 1
    tuning = epochs[history["phase"] == "tuning"]
    marker = "." if len(history) <= MAX_MARKED_EPOCHS else ""

    def draw(axes: Axes, quantity: str) -> None:
        axes.plot(epochs, history[f"val_{quantity}"], marker=marker)
        axes.plot(epochs, history[quantity], marker=marker)
        if len(tuning):
            axes.axvline(tuning.min() - 0.5, color=COLOURS["muted"], linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="epoch", ylabel=quantity)
        if quantity == "loss":  # its first epoch can be a hundred times its last
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())

    return {quantity: svg(f"{name} {quantity}", partial(draw, quantity=quantity)) for quantity in ("loss", "accuracy")}


def _roc_plot(scored_sets: Sequence[_ScoredSet], threshold: float) -> Markup:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        for scored in scored_sets:
            false_alarms, found, _ = roc_curve(scored.labels, scored.probabilities)
            (line,) = axes.plot(false_alarms, found)
            called = scored.confusion(threshold)["crack"]
            axes.scatter(called["intact"] / scored.n_intact, called["crack"] / scored.n_crack, color=line.get_color())
        axes.set(xlabel="share of intact images called crack", ylabel="share of cracks found")

    return svg("roc", draw)


def _precision_recall_plot(scored_sets: Sequence[_ScoredSet], threshold: float) -> Markup:
    def draw(axes: Axes) -> None:
        for scored in scored_sets:
            right, found, _ = precision_recall_curve(scored.labels, scored.probabilities, drop_intermediate=True)
            (line,) = axes.plot(found, right, drawstyle="steps-post")
            called = scored.confusion(threshold)["crack"]
            n_called = max(1, sum(called.values()))  # where none is called, no call is right
            axes.scatter(called["crack"] / scored.n_crack, called["crack"] / n_called, color=line.get_color())
        axes.set(xlabel="recall: share of cracks found", ylabel="precision: right crack calls")
        axes.set_ylim(-0.05, 1.05)

    return svg("precision-recall", draw)


def _reliability_plot(scored_sets: Sequence[_ScoredSet]) -> Markup:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        for scored, colour in zip(scored_sets, cycle(DASHES), strict=False):
            bins = np.minimum((scored.probabilities * N_ECE_BINS).astype(int), N_ECE_BINS - 1)
            groups = pd.DataFrame({"stated": scored.probabilities, "crack": scored.labels}).groupby(bins)
            stated, n_crack, n = groups["stated"].mean(), groups["crack"].sum(), groups.size()
            axes.scatter(stated, n_crack / n, 14, color=COLOURS[colour])
            axes.vlines(stated, *_wilson_interval(n_crack, n), color=COLOURS[colour], linewidth=1)
        axes.set(xlabel="stated probability of a crack", ylabel="observed share of cracks")

    return svg("reliability", draw)


def _wilson_interval(n_found: "pd.Series[int]", n: "pd.Series[int]") -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Return the ends of the 95% interval of the true share where n_found of n were found (Wilson 1927)."""
    z2 = 1.96**2
    centre = (n_found + z2 / 2) / (n + z2)
    reach = np.sqrt(z2 * (n_found * (n - n_found) / n + z2 / 4)) / (n + z2)
    return centre - reach, centre + reach
