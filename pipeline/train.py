"""Train one candidate on train; calibrate it and choose its threshold and review band on validation.

Writes into --out the exported graph model.keras and decision.json; --scores, its scores on validation; --history, a
row per epoch. Each epoch is also logged to MLflow at once, if a tracking server answers.
"""

import logging
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.data.training_images import TRAINING_SIDES, images_of_side
from pipeline.files import replacing, replacing_folder, write_json
from pipeline.models.decision import DECISION_FILE, prevalence_weights
from pipeline.models.metrics import Probabilities, log_loss, scores
from pipeline.models.model_files import MODEL_FILE
from pipeline.params import Params
from pipeline.registry.runs import live_run
from pipeline.stage import run_main, stage_main
from pipeline.training.candidate import train_candidate
from pipeline.training.checkpoints import TrainingHistory, checkpoint_folder

log = logging.getLogger(__name__)


def validation_scores(
    validation: LabelledImages, probabilities: Probabilities, threshold: float, params: Params
) -> dict[str, Any]:
    """Return the scores on all of validation, and the log loss by which candidates are compared, `selection_loss`.

    That is the mean of the log loss on the data sets trained on and the log loss on photos of external test sets that
    are held out for validation, with the weight `select.external_weight` (0 without such photos). With a stated
    prevalence, which the probabilities assume, both losses are weighted for it.
    """
    names, labels = validation.rows["dataset"].to_numpy(str), validation.labels
    is_external = ~np.isin(names, params.split.train_on)  # (n,)
    weights = prevalence_weights(labels, names, params.decide.prevalence)
    in_domain, external = (
        log_loss(labels[chosen], probabilities[chosen], weights[chosen]) if chosen.any() else None
        for chosen in (~is_external, is_external)
    )
    weight = params.select.external_weight if is_external.any() else 0.0
    return {
        "selection_loss": (1 - weight) * (in_domain or 0.0) + weight * (external or 0.0),
        "log_loss": log_loss(labels, probabilities),
        "log_loss_in_domain": in_domain,
        "log_loss_external": external,
        **scores(labels, probabilities, threshold),
    }


def run(
    params: Params,
    candidate: Annotated[str, "its name in params.yaml"],
    *,
    datasets: Annotated[Path, "folder with a folder per data set"],
    manifest: Annotated[Path, "Parquet file of split"],
    features: Annotated[Path, "folder of the backbone's features"],
    checkpoints: Annotated[Path, "folder for unfinished work"],
    out: Annotated[Path, "folder to write"],
    scores: Annotated[Path, "JSON file to write"],
    history: Annotated[Path, "CSV file to write"],
) -> None:
    """Train a candidate and write its model, validation scores and history."""
    unfinished = checkpoint_folder(checkpoints, manifest, params, candidate)
    rows = pd.read_parquet(manifest)
    train, validation = (images_of_side(rows, split, datasets) for split in TRAINING_SIDES)
    with live_run(params, manifest, candidate) as report_epoch:
        epochs = TrainingHistory(unfinished / "history.jsonl", report_epoch)
        classifier, probabilities = train_candidate(params, candidate, train, validation, features, unfinished, epochs)
    with replacing_folder(out) as folder:
        classifier.model.save(folder / MODEL_FILE)
        write_json(folder / DECISION_FILE, classifier.decision.as_dict())
    result = validation_scores(validation, probabilities, classifier.decision.threshold, params)
    write_json(scores, result)
    with replacing(history) as partial:
        pd.DataFrame(epochs.rows).to_csv(partial, index=False)
    shutil.rmtree(unfinished, ignore_errors=True)
    log.info("%s: F1 %.4f, AUROC %.4f on %d validation images", candidate, result["f1"], result["auroc"], result["n"])


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
