"""The report: a single HTML page without scripts that works offline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.data.images import read_quarantine
from pipeline.evaluation.examples import Picture
from pipeline.evaluation.plots import precision_recall_plot, reliability_plot, roc_plot, slices_plot, training_plots
from pipeline.page import DASHES, template
from pipeline.params import Dataset, Params

if TYPE_CHECKING:  # finding the layers needs TensorFlow, showing them does not
    from pipeline.evaluation.model_architecture import Layer

PLOTTED_KINDS = ("all", "surface", "brightness", "sharpness", "size")  # of slices; there can be hundreds of photos
N_WORST_PHOTOS = 10
SIDES = ("train", "validation", "test", "external", "excluded")
WEIGHTS = {  # pre-trained, by the prefix of the architecture's name
    "efficientnet-lite": "EfficientNet-Lite, pre-trained on ImageNet, Apache-2.0",
    "mobilenet-v2": "MobileNetV2, pre-trained on ImageNet, MIT",
}


@dataclass(frozen=True)
class DatasetFacts:
    """The facts about a data set in the report."""

    name: str  # in params.yaml
    is_trained_on: bool  # if not, it is an external test set
    source: str  # citation and licence, if they are known
    sides: Mapping[str, int]  # number of images on each side of the split
    n_crack: int
    n_groups: int
    n_quarantined: int  # files that could not be used

    @property
    def n(self) -> int:
        """Number of images."""
        return sum(self.sides.values())


def render(
    *,
    metrics: dict[str, Any],  # content of scores.json
    candidates: Mapping[str, Mapping[str, Any]],  # validation scores of each candidate, as `train` writes them
    histories: Mapping[str, pd.DataFrame],
    predictions: pd.DataFrame,
    slices: pd.DataFrame,  # table from `slice_table`
    mistakes: Mapping[str, Sequence[Picture]],  # the worst in each set ("Test", "External: NAME"), in any order
    samples: Mapping[str, Sequence[Picture]],  # random predictions for each data set
    architecture: "Sequence[Layer]",  # of the chosen model
    datasets: Sequence[DatasetFacts],  # those trained on first
    weights: str,  # pre-trained weights that training started from, and their licences
) -> str:
    """Return the page as HTML with embedded styles, plots and images; equal inputs give equal pages.

    A history has one row per epoch: step (from 0, over both phases), phase (head or tuning), loss, val_loss, accuracy,
    val_accuracy; that of a probe has one row per head and `l2_penalty`, with the head as phase. `predictions` has one
    row per image: dataset, split (test or external), label (crack or intact), probability (0..1).
    """
    decision = metrics["decision"]  # review_from <= threshold <= review_to
    threshold = decision["threshold"]
    scored_sets = named_sets(predictions)
    curve_sets = {name: rows for name, rows in scored_sets.items() if rows["label"].nunique() == 2}
    shown_slices = _shown_slices(slices)
    slice_rows = {name: _rows(rows) for name, rows in shown_slices.items()}
    sides = predictions.groupby("dataset")["split"].first()
    return template("evaluation/templates/report.html.j2").render(
        percent=_percent,
        metrics=metrics,
        scores={
            "Test": metrics["test"],
            **{f"Test: {name}": scores for name, scores in metrics["tests"].items()},
            **{f"External: {name}": scores for name, scores in metrics["external"].items()},
        },
        candidates=candidates,
        decision=decision,
        zones=_zones(scored_sets["Test"], decision),
        confusions={name: _confusion(rows, threshold) for name, rows in scored_sets.items()},
        legend=list(curve_sets),
        dashes=DASHES,
        histories=histories,
        training={name: training_plots(name, history) for name, history in histories.items()},
        roc=roc_plot(curve_sets.values(), threshold),
        precision_recall=precision_recall_plot(curve_sets.values(), threshold),
        reliability=reliability_plot(curve_sets.values()),
        mistakes={name: _by_kind(pictures) for name, pictures in mistakes.items()},
        samples={
            _set_name(f"{sides[name]}:{name}"): _by_correctness(pictures, threshold)
            for name, pictures in samples.items()
        },
        slices=slice_rows,
        reviewed=[
            (f"{name}, {part}" if row["kind"] == "surface" else name, row)
            for name, rows in slice_rows.items()
            for part, row in rows
            if row["kind"] in ("all", "surface")
        ],
        slice_plots={
            name: slices_plot(name, rows) for name, rows in shown_slices.items() if rows["balanced_f1"].notna().any()
        },
        photos=_worst_photos(slices),
        architecture=architecture,
        datasets=datasets,
        weights=weights,
    )


def _percent(part: int, total: int) -> str:
    """Format a share so that 0.0 % means exactly none and 100.0 % exactly all, with a no-break space."""
    if total == 0:
        return "—"
    if 0 < part < 0.0005 * total:
        figure = "<0.1"
    elif 0.9995 * total <= part < total:
        figure = ">99.9"
    else:
        figure = f"{100 * part / total:.1f}"
    return f"{figure}\N{NO-BREAK SPACE}%"


def named_sets(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of the test side, then those of each external test set, by the set's name in the report."""
    is_test = predictions["split"] == "test"
    external = predictions[~is_test].groupby("dataset")
    return {"Test": predictions[is_test], **{f"External: {name}": rows for name, rows in external}}


def _count_labels(rows: pd.DataFrame) -> dict[str, int]:
    return {label: int((rows["label"] == label).sum()) for label in ("crack", "intact")}


def _confusion(rows: pd.DataFrame, threshold: float) -> dict[str, dict[str, int]]:
    """Count images by predicted, then by true label."""
    predicted = rows["probability"] >= threshold
    return {"crack": _count_labels(rows[predicted]), "intact": _count_labels(rows[~predicted])}


def _zones(test: pd.DataFrame, decision: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Count test images by verdict (intact, review or crack), then by true label."""
    low, high = test["probability"] < decision["review_from"], test["probability"] >= decision["review_to"]
    verdicts = {"intact": low, "review": ~low & ~high, "crack": high}
    return {verdict: _count_labels(test[chosen]) for verdict, chosen in verdicts.items()}


def _by_kind(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Return missed cracks and false alarms, each sorted from the most confident mistake."""
    return {
        "crack": sorted((one for one in pictures if one.label == "crack"), key=lambda one: one.probability),
        "intact": sorted((one for one in pictures if one.label == "intact"), key=lambda one: -one.probability),
    }


def _by_correctness(pictures: Sequence[Picture], threshold: float) -> dict[str, list[Picture]]:
    parts: dict[str, list[Picture]] = {"right": [], "wrong": []}
    for picture in pictures:
        is_right = (picture.probability >= threshold) == (picture.label == "crack")
        parts["right" if is_right else "wrong"].append(picture)
    return parts


def _shown_slices(slices: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the plotted slices of each set; a single data set trained on is left out, as it equals the set Test."""
    plotted = slices[slices["kind"].isin(PLOTTED_KINDS)]
    sets = {_set_name(str(name)): rows for name, rows in plotted.groupby("set", sort=False)}
    trained_on = [name for name in sets if name.startswith("Test:")]
    return {name: rows for name, rows in sets.items() if not (len(trained_on) == 1 and name in trained_on)}


def _set_name(name: str) -> str:
    """Return the name of a set in the table of slices as the page writes it: Test, Test: NAME or External: NAME."""
    side, colon, dataset = name.partition(":")
    return f"{side.capitalize()}: {dataset}" if colon else side.capitalize()


def _worst_photos(slices: pd.DataFrame) -> dict[str, list[tuple[str, dict[Any, Any]]]]:
    """Return the photos with the lowest balanced F1 in each external test set."""
    photos = slices[(slices["kind"] == "photo") & slices["set"].str.startswith("external:")]
    photos = photos[photos["balanced_f1"].notna()].sort_values("balanced_f1", kind="stable")
    return {_set_name(str(name)): _rows(rows.head(N_WORST_PHOTOS)) for name, rows in photos.groupby("set")}


def _rows(slices: pd.DataFrame) -> list[tuple[str, dict[Any, Any]]]:
    """Return the name and the scores of each slice, with `interval` as in scores.json and None for missing values."""
    intervals = [column.removesuffix("_low") for column in map(str, slices) if column.endswith("_low")]
    rows = []
    for row in slices.astype(object).where(slices.notna(), None).to_dict(orient="records"):
        name = row["slice"] if row["kind"] in ("all", "photo") else f"{row['kind']} {row['slice']}"
        known = [score for score in intervals if row[f"{score}_low"] is not None]
        interval = {score: {"low": row[f"{score}_low"], "high": row[f"{score}_high"]} for score in known}
        rows.append((name, {**row, "interval": interval}))
    return rows


def source_of(dataset: Dataset) -> str:
    """Return the citation and the licence of a data set, or a hint if neither is given in params.yaml."""
    known = [text for text in (dataset.citation, dataset.licence) if text]
    return ", ".join(known) or "your own data: note its origin, owner and licence before you pass the model on"


def weights_of(architecture: str) -> str:
    """Return the name and the licence of the pre-trained weights of `architecture`."""
    known = [text for start, text in WEIGHTS.items() if architecture.startswith(start)]
    return known[0] if known else f"{architecture}: look up the licence of its weights"


def dataset_facts(params: Params, manifest: pd.DataFrame, datasets: Path) -> Iterator[DatasetFacts]:
    """Yield the facts of each data set in `params`, those trained on first."""
    for name in sorted(params.datasets, key=lambda name: name not in params.split.train_on):
        rows = manifest[manifest["dataset"] == name]
        yield DatasetFacts(
            name=name,
            is_trained_on=name in params.split.train_on,
            source=source_of(params.datasets[name]),
            sides={side: int((rows["split"] == side).sum()) for side in SIDES},
            n_crack=int((rows["label"] == "crack").sum()),
            n_groups=rows["group"].nunique(),
            n_quarantined=int((~read_quarantine(datasets / name)["is_left_out"]).sum()),
        )
