"""Choose the best candidate on validation, then score it once on test and on the external test sets.

Writes --scores (all scores, with intervals), --metrics and --external-metrics (the few that DVC shows and compares),
--slices (scores by brightness, sharpness, surface, ...), --predictions (a row per image), --mistakes (the worst ones,
with occlusion maps) and --architecture (the layers of the network).
"""

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.evaluation.bootstrap import scores_with_intervals
from pipeline.evaluation.leakage import leakage_effect
from pipeline.evaluation.model_architecture import describe_layers
from pipeline.evaluation.scoring import scorer
from pipeline.evaluation.slices import slice_table, with_measures
from pipeline.evaluation.worst_mistakes import with_occlusion_maps, worst_mistakes
from pipeline.files import replacing, replacing_folder, write_json
from pipeline.models.classifier import Classifier
from pipeline.models.metrics import scores
from pipeline.params import Params, load_params
from pipeline.stage import run_main, stage_parser

log = logging.getLogger(__name__)

HEADLINE = ("n", "f1", "auroc", "balanced_accuracy", "ece", "threshold")
EXTERNAL_HEADLINE = ("auroc", "balanced_accuracy")


def best_candidate(candidates: dict[str, dict[str, Any]]) -> str:
    """Return the name with the lowest selection loss on validation, the first by name if there are several."""
    return min(sorted(candidates), key=lambda name: float(candidates[name]["selection_loss"]))


def score(predictions: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Return the scores of `predictions`, and `interval`: score -> its 95 % interval, or None."""
    labels, probabilities = (predictions["label"] == "crack").to_numpy(), predictions["probability"].to_numpy()
    intervals = scores_with_intervals(labels, probabilities, predictions["group"].to_numpy(), threshold)
    return intervals | scores(labels, probabilities, threshold)


def summarise(
    params: Params, candidate: str, split: dict[str, int], predictions: pd.DataFrame, threshold: float
) -> dict[str, Any]:
    """Return the content of scores.json that follows from the candidate's predictions."""
    test = predictions[predictions["split"] == "test"]
    external = predictions[predictions["split"] == "external"]
    return {
        "demo": params.is_demo,
        "trained_on": list(params.split.train_on),
        "candidate": candidate,
        "split": split,
        "test": score(test, threshold),
        "tests": {name: score(rows, threshold) for name, rows in test.groupby("dataset")},
        "external": {name: score(rows, threshold) for name, rows in external.groupby("dataset")},
    }


def write_metrics(summary: dict[str, Any], metrics_path: Path, external_folder: Path) -> None:
    """Write the scores that DVC shows and compares: a file for test and, in a folder, one for each external test set.

    `dvc metrics show` prints a row per file. In a single file, external test sets would make it wider than a terminal.
    """
    test = {name: summary["test"][name] for name in HEADLINE}
    with replacing_folder(external_folder) as folder:
        for name, scores in summary["external"].items():
            write_json(folder / f"{name}.json", {key: scores[key] for key in EXTERNAL_HEADLINE})
    write_json(metrics_path, {**test, "leaks": summary["split"]["leaks"]})


def run(
    params: Params,
    *,
    datasets: Path,
    manifest_path: Path,
    split_path: Path,
    features: Path,
    models: Path,
    candidates_folder: Path,
    scores_path: Path,
    metrics_path: Path,
    external: Path,
    slices_path: Path,
    predictions_path: Path,
    mistakes_path: Path,
    architecture_path: Path,
) -> None:
    """Score the best candidate and write the results."""
    candidates = {name: json.loads((candidates_folder / f"{name}.json").read_text()) for name in params.candidates}
    best = best_candidate(candidates)
    classifier = Classifier.load(models / best)
    manifest = pd.read_parquet(manifest_path)
    images = LabelledImages(manifest[manifest["split"].isin(("test", "external"))], datasets)
    predictions = images.rows.assign(probability=classifier.probabilities(images, progress="scoring"))
    threshold, backbone = classifier.decision.threshold, params.candidates[best].backbone
    summary = summarise(params, best, json.loads(split_path.read_text()), predictions, threshold)
    summary["decision"] = classifier.decision.as_dict()
    summary["leakage"] = leakage_effect(manifest[manifest["dataset"].isin(params.split.train_on)], features / backbone)
    slices = slice_table(with_measures(predictions, datasets), threshold)
    mistakes = with_occlusion_maps(worst_mistakes(predictions, threshold), datasets, scorer(classifier.model))
    for path, table in ((predictions_path, predictions), (mistakes_path, mistakes)):
        with replacing(path) as partial:
            table.to_parquet(partial, index=False)
    with replacing(slices_path) as partial:
        slices.to_csv(partial, index=False)
    write_json(architecture_path, describe_layers(classifier.model))
    write_json(scores_path, summary)
    write_metrics(summary, metrics_path, external)
    log.info("%s, chosen on validation: F1 %.4f on %d test images", best, summary["test"]["f1"], summary["test"]["n"])


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file of split")
    parser.add_argument("--split", type=Path, required=True, help="summary of split")
    parser.add_argument("--features", type=Path, required=True, help="folder with a folder per backbone")
    parser.add_argument("--models", type=Path, required=True, help="folder with a folder per candidate")
    parser.add_argument("--candidates", type=Path, required=True, help="folder of the candidates' validation scores")
    parser.add_argument("--scores", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--external-metrics", type=Path, required=True, help="folder to write, with a file per external test set"
    )
    parser.add_argument("--slices", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--predictions", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--mistakes", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--architecture", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    run(
        load_params(args.params),
        datasets=args.datasets,
        manifest_path=args.manifest,
        split_path=args.split,
        features=args.features,
        models=args.models,
        candidates_folder=args.candidates,
        scores_path=args.scores,
        metrics_path=args.metrics,
        external=args.external_metrics,
        slices_path=args.slices,
        predictions_path=args.predictions,
        mistakes_path=args.mistakes,
        architecture_path=args.architecture,
    )


if __name__ == "__main__":
    run_main(main)
