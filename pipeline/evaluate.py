"""Choose the best candidate on validation, then score it once on test and on the outside sets.

Writes --metrics, --slices (the same scores where it is brighter, sharper, on another surface), --predictions (a row an
image), the curves in --plots and the --report that a person reads.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.architecture import draw
from pipeline.bootstrap import scores_with_intervals
from pipeline.card import dataset_facts, weights_of
from pipeline.classifier import Classifier
from pipeline.files import replacing, replacing_folder, write_json, write_text
from pipeline.images import LabelledImages
from pipeline.leaking import leaking
from pipeline.metrics import scores
from pipeline.params import Params, load_params
from pipeline.performance import measure_apart
from pipeline.pictures import random_predictions, worst_mistakes
from pipeline.report_page import Material, named_sets, render
from pipeline.scoring import scorer
from pipeline.slices import slice_table, with_measures
from pipeline.stage import run_main, stage_parser

log = logging.getLogger(__name__)

MAX_CURVE_POINTS = 500  # more cannot be seen in a plot


def best_candidate(candidates: dict[str, dict[str, Any]]) -> str:
    """Return the name with the lowest selection loss on validation, the first by name where two are equal."""
    return min(sorted(candidates), key=lambda name: float(candidates[name]["selection_loss"]))


def score(predictions: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Return the scores of the rows of `predictions`, and `interval`: by score, its 95 % interval or None."""
    labels, probabilities = (predictions["label"] == "crack").to_numpy(), predictions["probability"].to_numpy()
    more = scores_with_intervals(labels, probabilities, predictions["group"].to_numpy(), threshold)
    return more | scores(labels, probabilities, threshold)


def summarise(
    params: Params, candidate: str, split: dict[str, int], predictions: pd.DataFrame, threshold: float
) -> dict[str, Any]:
    """Return the content of metrics.json."""
    test = predictions[predictions["split"] == "test"]
    outside = predictions[predictions["split"] == "outside"]
    return {
        "demo": params.is_demo,
        "trained_on": list(params.split.train_on),
        "candidate": candidate,
        "split": split,
        "test": score(test, threshold),
        "tests": {name: score(rows, threshold) for name, rows in test.groupby("dataset")},
        "outside": {name: score(rows, threshold) for name, rows in outside.groupby("dataset")},
    }


def material_of(
    params: Params,
    classifier: Classifier,
    manifest: pd.DataFrame,
    measured: pd.DataFrame,
    datasets: Path,
    backbone: str,
) -> Material:
    """Return what the report shows besides the scores; `measured` are the predictions of `with_measures`."""
    threshold, score_batch = classifier.decision.threshold, scorer(classifier.model)
    return Material(
        slices=slice_table(measured, threshold),
        mistakes={
            name: worst_mistakes(rows, threshold, datasets, score_batch) for name, rows in named_sets(measured).items()
        },
        samples={
            str(name): random_predictions(rows, threshold, datasets) for name, rows in measured.groupby("dataset")
        },
        architecture=draw(classifier.model),
        datasets=list(dataset_facts(params, manifest, datasets)),
        weights=weights_of(params.backbones[backbone].architecture),
    )


@dataclass(frozen=True)
class Curves:
    """Tables that `dvc plots` draws, all on test."""

    roc: pd.DataFrame  # fpr, tpr
    precision_recall: pd.DataFrame  # recall, precision
    confusion: pd.DataFrame  # actual, predicted: a row an image

    def write(self, folder: Path) -> None:
        """Write each as a CSV file into `folder`."""
        for name, table in vars(self).items():
            table.to_csv(folder / f"{name}.csv", index=False)


def curves(predictions: pd.DataFrame, threshold: float) -> Curves:
    """Return the curves on test."""
    test = predictions[predictions["split"] == "test"]
    labels, probabilities = test["label"] == "crack", test["probability"]
    fpr, tpr, _ = roc_curve(labels, probabilities)
    precision, recall, _ = precision_recall_curve(labels, probabilities)
    predicted = np.where(probabilities >= threshold, "crack", "intact")
    return Curves(
        roc=_thin(pd.DataFrame({"fpr": fpr, "tpr": tpr})),
        precision_recall=_thin(pd.DataFrame({"recall": recall, "precision": precision})),
        confusion=pd.DataFrame({"actual": test["label"], "predicted": predicted}),
    )


def _thin(curve: pd.DataFrame) -> pd.DataFrame:
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, MAX_CURVE_POINTS).round().astype(int))]


def run(
    params: Params,
    *,
    datasets: Path,
    manifest_path: Path,
    split_path: Path,
    features: Path,
    models: Path,
    candidates_folder: Path,
    histories_folder: Path,
    metrics_path: Path,
    slices_path: Path,
    predictions_path: Path,
    plots: Path,
    report_path: Path,
) -> None:
    """Score the best candidate and write all that follows from it."""
    candidates = {name: json.loads((candidates_folder / f"{name}.json").read_text()) for name in params.candidates}
    histories = {name: pd.read_csv(histories_folder / f"{name}.csv") for name in params.candidates}
    best = best_candidate(candidates)
    classifier = Classifier.load(models / best)
    manifest = pd.read_parquet(manifest_path)
    images = LabelledImages(manifest[manifest["split"].isin(("test", "outside"))], datasets)
    predictions = images.rows.assign(probability=classifier.probabilities(images, progress="scoring"))
    threshold, backbone = classifier.decision.threshold, params.candidates[best].backbone
    metrics = summarise(params, best, json.loads(split_path.read_text()), predictions, threshold)
    metrics["leaking"] = leaking(manifest[manifest["dataset"].isin(params.split.train_on)], features / backbone)
    height_px, width_px = np.median(images.sizes, axis=0).astype(int)
    metrics["performance"] = measure_apart(models / best, height_px, width_px)
    material = material_of(params, classifier, manifest, with_measures(predictions, datasets), datasets, backbone)
    page = render(
        metrics=metrics,
        candidates=candidates,
        histories=histories,
        predictions=predictions,
        decision=classifier.decision.as_dict(),
        material=material,
    )
    with replacing(predictions_path) as partial:
        predictions.to_parquet(partial, index=False)
    with replacing(slices_path) as partial:
        material.slices.to_csv(partial, index=False)
    with replacing_folder(plots) as folder:
        curves(predictions, threshold).write(folder)
    write_text(report_path, page)
    write_json(metrics_path, metrics)
    log.info("%s, chosen on validation: F1 %.4f on %d test images", best, metrics["test"]["f1"], metrics["test"]["n"])


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file of split")
    parser.add_argument("--split", type=Path, required=True, help="summary of split")
    parser.add_argument("--features", type=Path, required=True, help="folder with a folder per backbone")
    parser.add_argument("--models", type=Path, required=True, help="folder with a folder per candidate")
    parser.add_argument("--candidates", type=Path, required=True, help="folder of the candidates' validation scores")
    parser.add_argument("--histories", type=Path, required=True, help="folder of the candidates' histories")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--slices", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--predictions", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--plots", type=Path, required=True, help="folder to write")
    parser.add_argument("--report", type=Path, required=True, help="HTML file to write")
    args = parser.parse_args()
    run(
        load_params(args.params),
        datasets=args.datasets,
        manifest_path=args.manifest,
        split_path=args.split,
        features=args.features,
        models=args.models,
        candidates_folder=args.candidates,
        histories_folder=args.histories,
        metrics_path=args.metrics,
        slices_path=args.slices,
        predictions_path=args.predictions,
        plots=args.plots,
        report_path=args.report,
    )


if __name__ == "__main__":
    run_main(main)
