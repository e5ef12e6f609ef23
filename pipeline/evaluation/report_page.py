"""The page of the report: one HTML file without scripts that opens offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from pipeline.evaluation.examples import Picture
from pipeline.evaluation.model_card import DatasetFacts
from pipeline.evaluation.plots import (
    ScoredSet,
    precision_recall_plot,
    reliability_plot,
    roc_plot,
    slices_plot,
    training_plots,
)
from pipeline.page import DASHES, template

PLOTTED_KINDS = ("all", "surface", "brightness", "sharpness", "size")  # kinds of slices; photos can be hundreds
N_WORST_PHOTOS = 10


@dataclass(frozen=True)
class ReportInputs:
    """What the report shows besides the scores.

    Attributes:
        slices: of `slice_table`.
        mistakes: by set ("Test", "External: NAME") the worst ones, in any order.
        samples: by data set, random predictions.
        architecture: of the chosen model, inline SVG.
        datasets: those trained on first.
        weights: what each candidate's training began with, and its licence.

    """

    slices: pd.DataFrame
    mistakes: Mapping[str, Sequence[Picture]]
    samples: Mapping[str, Sequence[Picture]]
    architecture: Markup
    datasets: Sequence[DatasetFacts]
    weights: str


def render(
    *,
    metrics: dict[str, Any],
    candidates: Mapping[str, Mapping[str, Any]],
    histories: Mapping[str, pd.DataFrame],
    predictions: pd.DataFrame,
    inputs: ReportInputs,
) -> str:
    """Return the page: HTML with styles, plots and pictures inside; equal inputs give equal pages.

    Args:
        metrics: the content of scores.json.
        candidates: by name, scores on validation: selection_loss, n, accuracy, f1, auroc, balanced_accuracy, ece,
            threshold.
        histories: by candidate, a row an epoch: step (from 0, over both phases), phase (head or tuning), loss,
            val_loss, accuracy, val_accuracy; of a probe, a row for each head, which is its phase, and
            `l2_penalty`.
        predictions: a row an image: dataset, split (test or external), label (crack or intact), probability (0..1).
        inputs: all else.

    """
    decision = metrics["decision"]  # review_from <= threshold <= review_to
    threshold = decision["threshold"]
    scored_sets = scored_sets_of(predictions)
    curve_sets = [scored for scored in scored_sets if scored.n_crack and scored.n_intact]
    shown_slices = _shown_slices(inputs.slices)
    return template("evaluation/templates/report.html.j2").render(
        percent=_percent,
        metrics=metrics,
        candidates=candidates,
        decision=decision,
        zones=_zones(scored_sets[0], decision),
        confusions={scored.name: scored.confusion(threshold) for scored in scored_sets},
        legend=[scored.name for scored in curve_sets],
        dashes=DASHES,
        histories=histories,
        training={name: training_plots(name, history) for name, history in histories.items()},
        roc=roc_plot(curve_sets, threshold),
        precision_recall=precision_recall_plot(curve_sets, threshold),
        reliability=reliability_plot(curve_sets),
        mistakes={name: _by_kind(pictures) for name, pictures in inputs.mistakes.items()},
        samples={name: _by_correctness(pictures, threshold) for name, pictures in inputs.samples.items()},
        slices={name: _records(rows) for name, rows in shown_slices.items()},
        slice_plots={
            name: slices_plot(name, rows) for name, rows in shown_slices.items() if rows["balanced_f1"].notna().any()
        },
        photos=_worst_photos(inputs.slices),
        inputs=inputs,
    )


def _percent(part: int, whole: int) -> str:
    """Format a share; only none is 0.0%, only all is 100.0%."""
    if whole == 0:
        return "—"
    if 0 < part < 0.0005 * whole:
        return "<0.1%"
    return ">99.9%" if 0.9995 * whole <= part < whole else f"{part / whole:.1%}"


def scored_sets_of(predictions: pd.DataFrame) -> list[ScoredSet]:
    """Return test as one set, then each external test set."""
    return [
        ScoredSet(name, (rows["label"] == "crack").to_numpy(), rows["probability"].to_numpy())
        for name, rows in named_sets(predictions).items()
    ]


def named_sets(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of test as one set, then of each external test set, by the name that the report gives it."""
    is_test = predictions["split"] == "test"
    external = predictions[~is_test].groupby("dataset")
    return {"Test": predictions[is_test], **{f"External: {name}": rows for name, rows in external}}


def _zones(test: ScoredSet, decision: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Count test images by what the model says when it may ask a person, then by what is true."""
    low = test.probabilities < decision["review_from"]
    high = test.probabilities >= decision["review_to"]
    return {"intact": test.count(low), "review": test.count(~low & ~high), "crack": test.count(high)}


def _by_kind(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Return missed cracks and false alarms, each from the surest mistake on."""
    missed = (picture for picture in pictures if picture.label == "crack")
    false = (picture for picture in pictures if picture.label == "intact")
    return {
        "crack": sorted(missed, key=lambda picture: picture.probability),
        "intact": sorted(false, key=lambda picture: -picture.probability),
    }


def _by_correctness(pictures: Sequence[Picture], threshold: float) -> dict[str, list[Picture]]:
    def is_right(picture: Picture) -> bool:
        return (picture.probability >= threshold) == (picture.label == "crack")

    return {
        "right": [picture for picture in pictures if is_right(picture)],
        "wrong": [picture for picture in pictures if not is_right(picture)],
    }


def _shown_slices(slices: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the charted slices by set; of a single data set trained on, `test` shows them already."""
    charted = slices[slices["kind"].isin(PLOTTED_KINDS)]
    sets = {str(name): rows for name, rows in charted.groupby("set", sort=False)}
    alone = [name for name in sets if name.startswith("test:")]
    return {name: rows for name, rows in sets.items() if not (len(alone) == 1 and name in alone)}


def _worst_photos(slices: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """Return by external test set the photos with the lowest balanced F1."""
    photos = slices[(slices["kind"] == "photo") & slices["set"].str.startswith("external:")]
    photos = photos[photos["balanced_f1"].notna()].sort_values("balanced_f1", kind="stable")
    return {str(name): _records(rows.head(N_WORST_PHOTOS)) for name, rows in photos.groupby("set")}


def _records(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows as dictionaries in which what is missing is None."""
    return rows.astype(object).where(rows.notna(), None).to_dict(orient="records")
