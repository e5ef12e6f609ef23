"""HTML page of the validation result of a data set, for those who must correct or judge the data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.data.contract import Rule
from pipeline.data.images import Images, Pixels
from pipeline.page import COLOURS, svg, template
from pipeline.params import CONTENT_ID_LENGTH

MAX_QUARANTINE_ROWS = 100
MAX_SIZES = 10
MAX_DOUBTFUL = 30
N_BINS = 40
LEAST_SHARPNESS = 1.0  # an image of one colour has 0, which a logarithmic axis cannot show

_STATES = ("broken", "warning", "met")  # in the order of the page
_LINES: dict[str, dict[str, Any]] = {
    "crack": {"color": COLOURS["series-1"]},
    "intact": {"color": COLOURS["series-0"], "linestyle": (0, (4, 2))},
}
_AXES = {
    "brightness": "mean grey level, 0 (black) to 255 (white)",
    "contrast": "standard deviation of the grey levels",
    "sharpness": "variance of the Laplacian, logarithmic",
}


@dataclass(frozen=True)
class CaptionedImage:
    """An image to show, RGB, uint8, shape (height, width, 3); the caption, such as the kind of copy, may be empty."""

    path: str
    label: str
    caption: str
    pixels: Pixels
    id: str = ""  # the first digits of the sha256 of its bytes


@dataclass(frozen=True)
class SuspectLabels:
    """The first images of a ranking by how likely their label is wrong, and sentences on what the ranking is worth."""

    tiles: tuple[CaptionedImage, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class CopyGroup:
    """Images that are copies of each other, or perhaps are: those to show, and how many there are."""

    tiles: tuple[CaptionedImage, ...]
    n_images: int
    is_conflict: bool  # whether their labels differ
    pairs: tuple[tuple[str, ...], ...] = ()  # ids, to be listed in params.yaml if the two are no copies


def captioned(row: Any, pixels: Pixels) -> CaptionedImage:
    """Return the picture of a row with path, label, caption and sha256."""
    return CaptionedImage(str(row.path), str(row.label), str(row.caption), pixels, row.sha256[:CONTENT_ID_LENGTH])


def doubtful_groups(pairs: pd.DataFrame, rows: pd.DataFrame, images: Images) -> list[CopyGroup]:
    """Return the doubtful pairs of `find_copies` to show, different labels first; `rows` describe all `images`."""
    label = rows["label"].to_numpy()
    differ = label[pairs["first"]] != label[pairs["second"]]
    shown = pairs.assign(differ=differ).sort_values(["differ", "agreement"], ascending=False).head(MAX_DOUBTFUL)
    groups = []
    for pair, both in zip(shown.itertuples(), shown[["first", "second"]].to_numpy().tolist(), strict=True):
        described = rows.iloc[both].assign(caption=["", f"{pair.kind}?"])
        tiles = tuple(captioned(described.iloc[side], images.pixels(at)) for side, at in enumerate(both))
        groups.append(CopyGroup(tiles, len(both), bool(pair.differ), (tuple(tile.id for tile in tiles),)))
    return groups


def violations(rules: Sequence[Rule], rows: pd.DataFrame, images: Images) -> dict[str, list[CaptionedImage]]:
    """Return pictures of the images that break each rule, by its text.

    `rows` has the path, label and caption of each of `images`, which are decoded where they break a rule.
    """
    positions = {path: position for position, path in enumerate(rows["path"])}
    return {
        rule.text: [
            captioned(rows.iloc[positions[path]], images.pixels(positions[path]))
            for path in rule.paths
            if path in positions
        ]
        for rule in rules
        if not rule.success
    }


def render_contract(
    *,
    name: str,  # of the data set
    is_drawn: bool,
    facts: Mapping[str, str],  # the headline figures
    rules: Sequence[Rule],  # in any order, with different texts
    violations: Mapping[str, Sequence[CaptionedImage]],  # images that break a rule, by its text
    inventory: pd.DataFrame,
    copy_groups: Sequence[CopyGroup] = (),  # those to show
    n_copy_groups: int | None = None,  # of all; None leaves copies out of the page
    doubtful: Sequence[CopyGroup] = (),  # pairs to show
    n_doubtful: int = 0,  # of all
    suspects: SuspectLabels | None = None,  # labels that look wrong; None leaves them out of the page
    quarantine: pd.DataFrame | None = None,  # batch, path, reason; None leaves it out of the page
) -> str:
    """Return the page as self-contained HTML; equal inputs give equal pages.

    `inventory` has a row for each image: label (crack or intact), brightness and contrast (grey levels), sharpness,
    width and height (pixels).
    """
    ordered = sorted(rules, key=lambda rule: _STATES.index(rule.state))
    sizes = _sizes(inventory)
    return template("data/contract.html.j2").render(
        name=name,
        is_drawn=is_drawn,
        facts=facts,
        rules=ordered,
        anchors={rule.text: f"rule-{number}" for number, rule in enumerate(ordered, start=1)},
        violations={
            rule.text: violations[rule.text] for rule in ordered if not rule.success and violations.get(rule.text)
        },
        copy_groups=copy_groups,
        n_copy_groups=n_copy_groups,
        doubtful=doubtful,
        n_doubtful=n_doubtful,
        suspects=suspects,
        quarantine=None if quarantine is None else list(quarantine.head(MAX_QUARANTINE_ROWS).itertuples()),
        n_quarantine=0 if quarantine is None else len(quarantine),
        histograms=_histograms(inventory),
        sizes=list(sizes.head(MAX_SIZES).itertuples()),
        n_sizes=len(sizes),
    )


def _histograms(inventory: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the plot of each quantity and its median by label; empty without images."""
    return [
        {
            "quantity": quantity,
            "plot": _histogram(inventory["label"], inventory[quantity], quantity),
            "unit": "" if quantity == "sharpness" else " grey levels",
            "medians": inventory.groupby("label")[quantity].median().to_dict(),
        }
        for quantity in _AXES
        if not inventory.empty
    ]


def _histogram(labels: "pd.Series[str]", values: "pd.Series[float]", quantity: str) -> Markup:
    is_logarithmic = quantity == "sharpness"  # blurred and sharp images differ by a factor of a hundred
    if is_logarithmic:
        values = values.clip(lower=LEAST_SHARPNESS).map(math.log10)
    values = values.round(3)  # np.histogram fails on values that differ only by rounding errors
    edges = np.histogram_bin_edges(values, N_BINS)
    shares = {label: np.histogram(found, edges)[0] / len(found) for label, found in values.groupby(labels)}
    drawn_edges = 10**edges if is_logarithmic else edges

    def draw(axes: Axes) -> None:
        for label, share in shares.items():
            axes.stairs(share, drawn_edges, fill=True, alpha=0.18, color=_LINES[label]["color"])
            axes.stairs(share, drawn_edges, linewidth=1.4, **_LINES[label])
        axes.set(xlabel=_AXES[quantity], ylabel="share of images")
        axes.set_axisbelow(True)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g}\N{NO-BREAK SPACE}%")
        if is_logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.ticklabel_format(axis="x", useOffset=False)

    return svg(quantity, draw, (4.0, 2.6))


def _sizes(inventory: pd.DataFrame) -> pd.DataFrame:
    """Return the number of images of each size by label, the most frequent size first."""
    is_crack = inventory["label"] == "crack"
    counted = inventory[["width", "height"]].assign(crack=is_crack, intact=~is_crack, n=1)
    counts = counted.groupby(["width", "height"], as_index=False).sum()
    return counts.sort_values("n", ascending=False, kind="stable")
