"""Sources of images, and how good a model is on those that it was not trained on.

A source is a surface of a data set, or all of a data set that has no surfaces; an external test set is one source.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.evaluation.bootstrap import MIN_GROUPS
from pipeline.evaluation.slices import MIN_OF_A_LABEL

AVERAGED = ("auroc", "balanced_accuracy", "ece", "missed_at_5_percent", "review_share", "missed_with_review")


def sources_of(manifest: pd.DataFrame) -> "pd.Series[str]":
    """Return the source of each image: its data set, followed by its slice where that has several: sdnet/Walls."""
    has_several = manifest.groupby("dataset")["slice"].transform("nunique") > 1
    surface = manifest["dataset"] + "/" + manifest["slice"]
    return manifest["dataset"].where(~has_several | (manifest["slice"] == ""), surface)


def too_few(n_crack: int, n_intact: int, n_groups: int) -> str | None:
    """Return why so many cracked and intact images, of so many groups, are too few to score a source, else None."""
    if min(n_crack, n_intact) >= MIN_OF_A_LABEL and n_groups >= MIN_GROUPS:
        return None
    found = f"{n_crack} cracked and {n_intact} intact images of {n_groups} photos or groups"
    return f"{found}; it takes {MIN_OF_A_LABEL} of each label, and {MIN_GROUPS} photos"


def summarise_sources(left_out: Mapping[str, Any], external: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores on all sources not trained on: those left out, as the stage wrote them, and external test sets.

    They are "scores" by source, "not_measured" (source -> why), "mean" of each of AVERAGED and "worst", the name of the
    source with the lowest AUROC. Without any source, mean is empty and worst None.
    """
    scores, not_measured = dict(left_out["scores"]), dict(left_out["not_measured"])
    for name, found in external.items():
        n_crack = round(found["n"] * found["prevalence"])
        if reason := too_few(n_crack, found["n"] - n_crack, found["n_groups"]):
            not_measured[name] = reason
        else:
            scores[name] = found
    return {
        "scores": scores,
        "not_measured": not_measured,
        "mean": {key: float(np.mean([one[key] for one in scores.values()])) for key in AVERAGED if scores},
        "worst": min(scores, key=lambda name: float(scores[name]["auroc"]), default=None),
    }
