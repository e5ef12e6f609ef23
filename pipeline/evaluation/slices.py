"""Scores of slices of the data: by surface, photo, brightness, sharpness and size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data.images import INVENTORY_FILE
from pipeline.evaluation.bootstrap import SCORES, scores_with_intervals
from pipeline.models.decision import Decision

MIN_OF_A_LABEL = 20  # to compare by; with fewer, one image changes recall or specificity by more than 0.05
MIN_IMAGES = 30  # in a slice; with fewer, a single image changes a score by more than 0.03
MEASURES = ("brightness", "sharpness", "size")  # divided into quarters


def with_measures(predictions: pd.DataFrame, datasets: Path) -> pd.DataFrame:
    """Return `predictions` with brightness and sharpness from the inventory, and size, the shorter side in pixels."""
    columns = ["brightness", "sharpness", "height", "width"]
    names = predictions["dataset"].unique()
    tables = {name: pd.read_parquet(datasets / name / INVENTORY_FILE, columns=columns) for name in names}
    inventories = pd.concat(tables, names=["dataset", "row"]).reset_index()
    inventories["size"] = inventories[["height", "width"]].min(axis=1)
    return predictions.merge(inventories[["dataset", "row", *MEASURES]], on=["dataset", "row"], validate="one_to_one")


def sets_of(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each set: `test`, and for each data set `test:NAME` or `external:NAME`."""
    sets = {"test": predictions[predictions["split"] == "test"]}
    for (dataset, split), rows in predictions.groupby(["dataset", "split"]):
        sets[f"{split}:{dataset}"] = rows
    return {name: sets[name] for name in sorted(sets, key=lambda name: (name.partition(":")[0] == "external", name))}


def slices_of(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (kind, slice, rows): all rows, then those of each surface, photo and quarter, if there are several."""
    yield "all", "all", rows
    for kind, column in (("surface", "slice"), ("photo", "photo")):
        if rows[column].nunique() > 1:
            for value, part in rows.groupby(column):
                yield kind, str(value) or "not named", part
    for kind in MEASURES:
        edges = np.unique(rows[kind].quantile([0, 0.25, 0.5, 0.75, 1]))
        # if many images have the same value, such as tiles of one size, quarters coincide
        if len(edges) > 2:
            for quarter, part in rows.groupby(pd.cut(rows[kind], list(edges), include_lowest=True), observed=True):
                at_least = part[kind].min() if quarter.left < edges[0] else quarter.left
                yield kind, f"{_rounded(at_least)} to {_rounded(quarter.right)}", part


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def slice_table(predictions: pd.DataFrame, decision: Decision) -> pd.DataFrame:
    """Return one row per slice: set, kind, slice, n, n_groups, prevalence, and each score with _low and _high.

    Scores are missing if they are undefined, or if a slice has fewer than 30 images or only one label. `predictions`
    has a row per image: dataset, split (test or external), label, slice, photo, group, probability, and the measures.
    """
    columns = ["set", "kind", "slice", "n", "n_groups", "prevalence"]
    columns += [f"{score}{end}" for score in SCORES for end in ("", "_low", "_high")]
    scored = [
        {"set": name, "kind": kind, "slice": value, **_scores(part, decision)}
        for name, rows in sets_of(predictions).items()
        for kind, value, part in slices_of(rows)
    ]
    return pd.DataFrame(scored, columns=columns)


def _scores(rows: pd.DataFrame, decision: Decision) -> dict[str, Any]:
    labels, groups = (rows["label"] == "crack").to_numpy(), rows["group"].to_numpy()
    if len(rows) < MIN_IMAGES or labels.all() or not labels.any():
        return {"n": len(rows), "n_groups": len(np.unique(groups)), "prevalence": labels.mean()}
    scores = scores_with_intervals(labels, rows["probability"].to_numpy(), groups, decision)
    for name, interval in scores.pop("interval").items():
        if interval is not None:
            scores |= {f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
    return scores
