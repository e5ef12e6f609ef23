"""Score registered versions on the current test images, as they are served.

A score stored with an old version was measured on other images and cannot be compared. So every model is scored again
on the test images and external test sets of the current manifest, without the groups that either model was trained on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_auc_score

from pipeline.data.images import LabelledImages
from pipeline.data.training_images import TRAINING_IMAGES_FILE, trained_groups
from pipeline.errors import CracksError
from pipeline.evaluation.bootstrap import SCORES, paired_difference, scores_with_intervals, weighted_accuracy
from pipeline.evaluation.slices import MIN_IMAGES, MIN_OF_A_LABEL, slices_of, with_measures
from pipeline.evaluation.unseen_sources import too_few
from pipeline.inference.served import ServedModel, served_outputs
from pipeline.models.decision import Decision
from pipeline.params import Decide
from pipeline.registry.evidence import Change, Comparison, OwnScores, Unknown


@dataclass(frozen=True)
class TestSet:
    """The current images on which the gate compares models."""

    __test__ = False  # not a test class for pytest

    rows: pd.DataFrame  # manifest rows of the images, with brightness, sharpness and size
    images: LabelledImages  # pixels in the same order
    manifest: pd.DataFrame  # all rows of the manifest

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted hashes of the images, which identifies the test set."""
        return hashlib.sha256("\n".join(sorted(self.rows["sha256"])).encode()).hexdigest()


@dataclass(frozen=True)
class Scored:
    """Predictions of a version on the test set."""

    version: str  # its number
    probabilities: npt.NDArray[np.float32]  # of a crack, (n,)
    decision: Decision  # its threshold and review band
    groups_trained_on: frozenset[str]  # groups of the current manifest that the version was trained on


def read_test_set(manifest_path: Path, datasets: Path) -> TestSet:
    """Return the test images and external test sets of the current manifest.

    Raises CracksError if the stages that create them have not run here.
    """
    try:
        manifest = pd.read_parquet(manifest_path)
        rows = manifest[manifest["split"].isin(("test", "external"))].reset_index(drop=True)
        return TestSet(with_measures(rows, datasets), LabelledImages(rows, datasets), manifest)
    except OSError as error:
        raise CracksError(
            f"The current test images are missing: {error}. Run `dvc repro split`, or `dvc pull`."
        ) from None


def score_version(version: str, folder: Path, test_set: TestSet) -> Scored:
    """Return the predictions of the downloaded version in `folder` on the test set.

    Raises CracksError if the model cannot be loaded, or its training images were not recorded.
    """
    model = ServedModel.load(folder)
    try:
        trained_on = pd.read_parquet(folder / TRAINING_IMAGES_FILE)
    except OSError:
        raise CracksError(f"version {version} has no record of its training images") from None
    probabilities = np.empty(len(test_set.images), np.float32)
    for positions, outputs in served_outputs(model, test_set.images, progress=f"scoring version {version}"):
        probabilities[positions] = outputs["probability"]
    return Scored(version, probabilities, model.decision, trained_groups(test_set.manifest, trained_on))


def own_scores(test_set: TestSet, scored: Scored) -> OwnScores | Unknown:
    """Return the scores of a model on the test images, without the groups it was trained on."""
    on_test, is_unseen = test_set.rows["split"] == "test", ~test_set.rows["group"].isin(scored.groups_trained_on)
    rows, probabilities = test_set.rows[on_test & is_unseen], scored.probabilities[on_test & is_unseen]
    labels = (rows["label"] == "crack").to_numpy()
    if labels.all() or not labels.any():
        return Unknown(f"none or all of the test images that version {scored.version} was not trained on are cracks")
    found = scores_with_intervals(labels, probabilities, rows["group"].to_numpy(), scored.decision)
    recalls = {}
    for name, part in parts_of(rows).items():
        cracks = rows.index.isin(part.index) & labels
        if cracks.sum() >= MIN_OF_A_LABEL:
            recalls[name] = float(np.mean(probabilities[cracks] >= scored.decision.threshold))
    aurocs, too_small = {}, []
    for dataset, part in test_set.rows[~on_test & is_unseen].groupby("dataset"):
        cracked = (part["label"] == "crack").to_numpy()
        if too_few(cracked.sum(), (~cracked).sum(), part["group"].nunique()):
            too_small.append(str(dataset))
        else:
            aurocs[str(dataset)] = float(roc_auc_score(cracked, scored.probabilities[part.index]))
    return OwnScores(
        n_images=found["n"],
        n_groups=found["n_groups"],
        scores={name: found[name] for name in SCORES},
        slice_recalls=recalls,
        external_aurocs=aurocs,
        too_small=tuple(too_small),
    )


def parts_of(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the slices of test images by name: data sets, surfaces, photos, and quartiles of image statistics."""
    parts = {f"{kind} {value}": part for kind, value, part in slices_of(rows) if kind != "all"}
    if rows["dataset"].nunique() > 1:
        parts |= {f"data set {name!s}": part for name, part in rows.groupby("dataset")}
    return {name: part for name, part in parts.items() if len(part) >= MIN_IMAGES}


def compare(test_set: TestSet, challenger: Scored, incumbent: Scored, costs: Decide) -> Comparison | Unknown:
    """Compare two models on images that neither was trained on; `costs` weighs the two kinds of mistakes."""
    crack_weight = costs.missed_crack_cost / (costs.missed_crack_cost + costs.false_alarm_cost)
    is_crack = (test_set.rows["label"] == "crack").to_numpy()
    right = {
        scored.version: (scored.probabilities >= scored.decision.threshold) == is_crack
        for scored in (challenger, incumbent)
    }
    is_clean = ~test_set.rows["group"].isin(challenger.groups_trained_on | incumbent.groups_trained_on)
    on_test = test_set.rows["split"] == "test"
    rows = test_set.rows[is_clean & on_test]

    def change(part: pd.DataFrame) -> Change:
        at = part.index.to_numpy()
        ours, theirs = (
            weighted_accuracy(is_crack[at], right[scored.version][at], crack_weight) if len(at) >= MIN_IMAGES else None
            for scored in (challenger, incumbent)
        )
        return Change(len(at), ours, theirs)

    at = rows.index.to_numpy()
    if len(set(is_crack[at].tolist())) < 2:
        return Unknown(f"none or all of the test images that neither version {incumbent.version} nor the challenger "
                       "was trained on are cracks")  # fmt: skip
    groups = rows["group"].to_numpy()
    difference = paired_difference(
        is_crack[at], right[challenger.version][at], right[incumbent.version][at], groups, crack_weight
    )
    n_groups = len(np.unique(groups))
    return Comparison(
        version=incumbent.version,
        n_images=len(rows),
        n_groups=n_groups,
        n_groups_left_out=test_set.rows.loc[on_test, "group"].nunique() - n_groups,
        test=change(rows),
        low=difference.low,
        confidence=difference.confidence,
        slices={name: change(part) for name, part in parts_of(rows).items() if _has_enough(part)},
        external={
            f"external test set {name!s}": change(part[is_clean[part.index]])
            for name, part in test_set.rows[~on_test].groupby("dataset")
        },
    )


def _has_enough(part: pd.DataFrame) -> bool:
    counts = part["label"].value_counts()
    return len(counts) == 2 and bool(counts.min() >= MIN_OF_A_LABEL)


def with_predictions(test_set: TestSet, scored: Mapping[str, Scored | Unknown]) -> pd.DataFrame:
    """Return a row per test image, with each version's probability and whether it was trained on the group."""
    table = test_set.rows[["path", "dataset", "split", "label", "group", "sha256"]].copy()
    for version, found in scored.items():
        if isinstance(found, Scored):
            table[f"probability_{version}"] = found.probabilities
            table[f"learned_{version}"] = table["group"].isin(found.groups_trained_on)
    return table
