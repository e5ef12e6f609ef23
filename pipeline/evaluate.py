"""Choose the best candidate on validation, then score it once on test and on the external test sets.

Writes --scores (all scores, with intervals), --metrics and --external-metrics (the few that DVC shows and compares),
--slices (scores by brightness, sharpness, surface, ...), --predictions (a row per image), --mistakes (the worst ones,
with occlusion maps) and --architecture (the layers of the network).
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.evaluation.bootstrap import scores_with_intervals
from pipeline.evaluation.candidate_choice import best_candidate
from pipeline.evaluation.leakage import leakage_effect
from pipeline.evaluation.model_architecture import describe_layers
from pipeline.evaluation.occlusion import Scorer, occlusion_map
from pipeline.evaluation.slices import slice_table, with_measures
from pipeline.evaluation.unseen_sources import summarise_sources
from pipeline.files import replacing, replacing_folder, write_json
from pipeline.models.classifier import Classifier
from pipeline.models.decision import Decision
from pipeline.models.metrics import scores
from pipeline.models.network import as_tf_function
from pipeline.params import Params
from pipeline.safe_text import cells
from pipeline.stage import run_main, stage_main

log = logging.getLogger(__name__)

N_PER_KIND = 6  # missed cracks and false alarms each, on the test side and on each external test set


def score(predictions: pd.DataFrame, decision: Decision) -> dict[str, Any]:
    """Return the scores of `predictions`, and `interval`: score -> its 95 % interval, or None."""
    labels, probabilities = (predictions["label"] == "crack").to_numpy(), predictions["probability"].to_numpy()
    intervals = scores_with_intervals(labels, probabilities, predictions["group"].to_numpy(), decision)
    return intervals | scores(labels, probabilities, decision.threshold)


def summarise(
    params: Params,
    candidate: str,
    split: dict[str, int],
    predictions: pd.DataFrame,
    decision: Decision,
    left_out: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of scores.json that follows from the candidate's predictions and the sources left out."""
    test = predictions[predictions["split"] == "test"]
    external = {
        str(name): score(rows, decision)
        for name, rows in predictions[predictions["split"] == "external"].groupby("dataset")
    }
    return {
        "demo": params.is_demo,
        "trained_on": list(params.split.train_on),
        "candidate": candidate,
        "split": split,
        "test": score(test, decision),
        "tests": {name: score(rows, decision) for name, rows in test.groupby("dataset")},
        "external": external,
        "sources": summarise_sources(left_out, external),
        "decision": decision.as_dict(),
    }


def write_metrics(summary: dict[str, Any], metrics_path: Path, external_folder: Path) -> None:
    """Write the scores that DVC shows and compares: a file for test and, in a folder, one for each external test set.

    `dvc metrics show` prints a row per file. In a single file, external test sets would make it wider than a terminal.
    """
    with replacing_folder(external_folder) as folder:
        for name, scores in summary["external"].items():
            write_json(folder / f"{name}.json", {key: scores[key] for key in ("auroc", "balanced_accuracy")})
    headline = ("n", "f1", "auroc", "balanced_accuracy", "ece", "threshold")
    write_json(metrics_path, {key: summary["test"][key] for key in headline} | {"leaks": summary["split"]["leaks"]})


def worst_mistakes(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return the rows of the most confident mistakes on the test side, then on each external test set.

    Each set has up to six missed cracks, then up to six false alarms, sorted from the most confident.
    """
    worst = []
    is_test = predictions["split"] == "test"
    for rows in (predictions[is_test], *(rows for _, rows in predictions[~is_test].groupby("dataset"))):
        is_crack, predicted = rows["label"] == "crack", rows["probability"] >= threshold
        worst.append(rows[is_crack & ~predicted].sort_values("probability").head(N_PER_KIND))
        worst.append(rows[~is_crack & predicted].sort_values("probability", ascending=False).head(N_PER_KIND))
    return pd.concat(worst)


def with_occlusion_maps(rows: pd.DataFrame, datasets: Path, score: Scorer) -> pd.DataFrame:
    """Return `rows` (dataset, row, label) with `occlusion_map`, the 49 values of each image's map, row by row."""
    images = LabelledImages(rows, datasets)
    maps = [occlusion_map(score, images.pixels(position)).ravel() for position in range(len(images))]
    return images.rows.assign(occlusion_map=pd.Series(maps, dtype=object))


def run(
    params: Params,
    *,
    datasets: Annotated[Path, "folder with a folder per data set"],
    manifest: Annotated[Path, "Parquet file of split"],
    split: Annotated[Path, "summary of split"],
    features: Annotated[Path, "folder with a folder per backbone"],
    models: Annotated[Path, "folder with a folder per candidate"],
    candidates: Annotated[Path, "folder of the candidates' validation scores"],
    sources: Annotated[Path, "JSON file of leave_one_source_out"],
    scores: Annotated[Path, "JSON file to write"],
    metrics: Annotated[Path, "JSON file to write"],
    external_metrics: Annotated[Path, "folder to write, with a file per external test set"],
    slices: Annotated[Path, "CSV file to write"],
    predictions: Annotated[Path, "Parquet file to write"],
    mistakes: Annotated[Path, "Parquet file to write"],
    architecture: Annotated[Path, "JSON file to write"],
) -> None:
    """Score the best candidate and write the results."""
    best = best_candidate(candidates, params.candidates)
    classifier = Classifier.load(models / best)
    rows = pd.read_parquet(manifest)
    images = LabelledImages(rows[rows["split"].isin(("test", "external"))], datasets)
    predicted = images.rows.assign(probability=classifier.probabilities(images, progress="scoring"))
    decision, backbone = classifier.decision, params.candidates[best].backbone
    left_out = json.loads(sources.read_text())
    summary = summarise(params, best, json.loads(split.read_text()), predicted, decision, left_out)
    summary["leakage"] = leakage_effect(rows[rows["dataset"].isin(params.split.train_on)], features / backbone)
    compute = as_tf_function(classifier.model)
    worst = with_occlusion_maps(
        worst_mistakes(predicted, decision.threshold), datasets, lambda batch: compute(batch)["probability"].numpy()
    )
    for path, table in ((predictions, predicted), (mistakes, worst)):
        with replacing(path) as partial:
            table.to_parquet(partial, index=False)
    with replacing(slices) as partial:
        cells(slice_table(with_measures(predicted, datasets), decision)).to_csv(partial, index=False)
    write_json(architecture, describe_layers(classifier.model))
    write_json(scores, summary)
    write_metrics(summary, metrics, external_metrics)
    log.info("%s, chosen on validation: F1 %.4f on %d test images", best, summary["test"]["f1"], summary["test"]["n"])


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
