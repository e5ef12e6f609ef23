"""Plots of the report, as inline SVG in the colours of the page; and the tables that `dvc plots` draws.

A scored set is a table with a row per image: label (crack or intact), probability (predicted, of a crack, 0..1).
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.models.metrics import N_ECE_BINS
from pipeline.page import COLOURS, DASHES, shown, svg

MAX_MARKED_EPOCHS = 40  # with more, the markers hide the line
MAX_CURVE_POINTS = 500  # of a table; more are not visible in a plot
MAX_LABEL_CHARACTERS = 20  # of a name in a plot; a longer one leaves no room for the axes

_DIAGONAL: dict[str, Any] = {"color": COLOURS["muted"], "linestyle": ":", "linewidth": 1}


def training_plots(name: str, history: pd.DataFrame) -> dict[str, Markup]:
    """Return plots of a candidate's loss and accuracy, by epoch, or for a probe by L2 penalty."""
    draw_curves = _draw_by_penalty if "l2_penalty" in history else _draw_by_epoch

    def draw(axes: Axes, quantity: str) -> None:
        draw_curves(axes, history, quantity)
        axes.set_ylabel(quantity)
        if quantity == "loss":  # the first epoch's can be a hundred times the last's
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())

    return {quantity: svg(f"{name} {quantity}", partial(draw, quantity=quantity)) for quantity in ("loss", "accuracy")}


def _draw_by_epoch(axes: Axes, history: pd.DataFrame, quantity: str) -> None:
    epochs = history["step"] + 1
    marker = "." if len(history) <= MAX_MARKED_EPOCHS else ""
    axes.plot(epochs, history[f"val_{quantity}"], marker=marker)
    axes.plot(epochs, history[quantity], marker=marker)
    tuning = epochs[history["phase"] == "tuning"]
    if len(tuning):
        axes.axvline(tuning.min() - 0.5, color=COLOURS["muted"], linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _draw_by_penalty(axes: Axes, history: pd.DataFrame, quantity: str) -> None:
    heads = history.groupby("phase")
    for dataset, head in heads:
        axes.set_prop_cycle(None)  # the same colours for every head
        [held_out] = axes.plot(head["l2_penalty"], head[f"val_{quantity}"], marker=".")
        axes.plot(head["l2_penalty"], head[quantity], marker=".")
        if len(heads) > 1:
            name, colour = shown(str(dataset), MAX_LABEL_CHARACTERS), held_out.get_color()
            place = (head["l2_penalty"].iloc[0], head[f"val_{quantity}"].iloc[0])
            axes.annotate(name, place, (0, 6), textcoords="offset points", color=colour)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_xaxis()  # from underfitting to overfitting, like epochs
    axes.set_xlabel("L2 penalty")


def roc_plot(scored_sets: Iterable[pd.DataFrame], threshold: float) -> Markup:
    """Return the ROC curves of the sets, each with a dot at the threshold."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        for scored in scored_sets:
            is_crack, predicted = scored["label"] == "crack", scored["probability"] >= threshold
            false_alarms, found, _ = roc_curve(is_crack, scored["probability"])
            (line,) = axes.plot(false_alarms, found)
            axes.scatter(predicted[~is_crack].mean(), predicted[is_crack].mean(), color=line.get_color())
        axes.set(xlabel="false alarms: share of intact images", ylabel="share of cracks found")

    return svg("roc", draw)


def precision_recall_plot(scored_sets: Iterable[pd.DataFrame], threshold: float) -> Markup:
    """Return the precision-recall curves of the sets, each with a dot at the threshold."""

    def draw(axes: Axes) -> None:
        for scored in scored_sets:
            is_crack, predicted = scored["label"] == "crack", scored["probability"] >= threshold
            right, found, _ = precision_recall_curve(is_crack, scored["probability"], drop_intermediate=True)
            (line,) = axes.plot(found, right, drawstyle="steps-post")
            # without predicted cracks, precision is drawn as 0
            precision = (predicted & is_crack).sum() / max(1, predicted.sum())
            axes.scatter(predicted[is_crack].mean(), precision, color=line.get_color())
        axes.set(xlabel="recall: share of cracks found", ylabel="precision: right crack predictions")
        axes.set_ylim(-0.05, 1.05)

    return svg("precision-recall", draw)


def reliability_plot(scored_sets: Iterable[pd.DataFrame]) -> Markup:
    """Return the reliability diagram: observed share of cracks by predicted probability, with Wilson intervals."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], **_DIAGONAL)
        for scored, colour in zip(scored_sets, cycle(DASHES), strict=False):
            table = reliability_table(scored)
            axes.scatter(table["stated"], table["observed"], 14, color=COLOURS[colour])
            axes.vlines(table["stated"], table["low"], table["high"], color=COLOURS[colour], linewidth=1)
        axes.set(xlabel="predicted probability of a crack", ylabel="observed share of cracks")

    return svg("reliability", draw)


def reliability_table(scored: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each bin of equal width that contains images.

    Columns: stated (mean predicted probability), observed (share of cracks), low and high (its 95 % interval), n.
    """
    bins = np.minimum((scored["probability"] * N_ECE_BINS).astype(int), N_ECE_BINS - 1)
    groups = pd.DataFrame({"stated": scored["probability"], "crack": scored["label"] == "crack"}).groupby(bins)
    n_crack, n = groups["crack"].sum(), groups.size()
    tests = [binomtest(*counts) for counts in zip(n_crack, n, strict=True)]
    low, high = zip(*(test.proportion_ci(method="wilson") for test in tests), strict=True)
    return pd.DataFrame({"stated": groups["stated"].mean(), "observed": n_crack / n, "low": low, "high": high, "n": n})


def slices_plot(name: str, rows: pd.DataFrame) -> Markup:
    """Return a plot of the balanced F1 of those slices of a set, rows of `slice_table`, that have a score."""
    rows = rows[rows["balanced_f1"].notna()].reset_index(drop=True)
    names = [
        "all" if kind == "all" else f"{kind} {shown(value, MAX_LABEL_CHARACTERS)}"
        for kind, value in zip(rows["kind"], rows["slice"], strict=True)
    ]
    first_of_kind = rows["kind"] != rows["kind"].shift()

    def draw(axes: Axes) -> None:
        axes.axvline(rows["balanced_f1"].iloc[0], **_DIAGONAL)
        axes.hlines(rows.index, rows["balanced_f1_low"], rows["balanced_f1_high"], color=COLOURS["series-0"])
        axes.scatter(rows["balanced_f1"], rows.index, 22, color=COLOURS["series-0"], zorder=3)
        for row in rows.index[first_of_kind][1:]:
            axes.axhline(row - 0.5, color=COLOURS["line"], linewidth=1)
        axes.set_yticks(rows.index, names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))  # more would overlap if all values are near 1
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="balanced F1")

    return svg(f"slices {name}", draw, (4.6, 0.9 + 0.24 * len(rows)))


def plot_tables(test: pd.DataFrame, threshold: float, histories: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the tables by name: four of the scored test set, and training, with a row per epoch or penalty.

    Columns: roc fpr, tpr; precision_recall recall, precision; reliability those of `reliability_table`; confusion
    actual, predicted, in a row per image; training candidate, step, loss, val_loss.
    """
    is_crack, probabilities = test["label"] == "crack", test["probability"]
    fpr, tpr, _ = roc_curve(is_crack, probabilities)
    precision, recall, _ = precision_recall_curve(is_crack, probabilities)
    training = pd.concat([history.assign(candidate=name) for name, history in histories.items()])
    return {
        "roc": _downsample(pd.DataFrame({"fpr": fpr, "tpr": tpr})),
        "precision_recall": _downsample(pd.DataFrame({"recall": recall, "precision": precision})),
        "reliability": reliability_table(test),
        "confusion": pd.DataFrame(
            {"actual": test["label"], "predicted": np.where(probabilities >= threshold, "crack", "intact")}
        ),
        "training": training[["candidate", "step", "loss", "val_loss"]],
    }


def _downsample(curve: pd.DataFrame) -> pd.DataFrame:
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, MAX_CURVE_POINTS).round().astype(int))]
