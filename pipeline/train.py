"""Train one candidate on train; calibrate it and choose its threshold and review band on validation.

Writes into --out the exported graph model.keras and decision.json; --scores, its scores on validation; --history, a
row per epoch. Each epoch is also logged to MLflow at once, if a tracking server answers.
"""

import logging
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.data.training_images import TRAINING_SIDES, images_of_side
from pipeline.files import replacing, replacing_folder, write_json
from pipeline.models.calibration import Calibration, calibrated, fit_calibration
from pipeline.models.decision import DECISION_FILE, choose_decision, prevalence_weights
from pipeline.models.linear_head import linear_classifier
from pipeline.models.metrics import Probabilities, log_loss, scores
from pipeline.models.model_files import MODEL_FILE
from pipeline.models.network import logits_and_features
from pipeline.models.tf import keras
from pipeline.params import ConvHead, Params, Probe
from pipeline.registry.runs import live_run
from pipeline.stage import run_main, stage_main
from pipeline.training.checkpoints import TrainingHistory, checkpoint_folder
from pipeline.training.conv_head_fitting import fit_conv_head
from pipeline.training.features import Features, features_of
from pipeline.training.finetune import fit_finetune
from pipeline.training.probe import fit_probe, rows_by_head

log = logging.getLogger(__name__)


def fit(
    params: Params,
    name: str,
    train: LabelledImages,
    validation: LabelledImages,
    features: Path,
    history: TrainingHistory,
) -> tuple[keras.Model, npt.NDArray[np.float32], Features]:
    """Train candidate `name`; return the uncalibrated graph, and its logits (n,) and features on validation."""
    candidate = params.candidates[name]
    backbone = params.backbones[candidate.backbone]
    if isinstance(candidate, Probe):
        head = fit_probe(rows_by_head(backbone, candidate, train, features, history.path.parent), candidate, history)
        known = features_of(validation.rows, features)
        return linear_classifier(backbone, head), head.logits(known), known
    if isinstance(candidate, ConvHead):
        classifier = fit_conv_head(backbone, train, validation, candidate, history)
    else:
        classifier = fit_finetune(backbone, train, validation, candidate, history)
    return classifier, *logits_and_features(classifier, validation, progress="validating")


def calibrate(
    params: Params, name: str, validation: LabelledImages, logits: npt.NDArray[np.float32], features: Features
) -> Calibration:
    """Return the calibration of candidate `name`, for the stated prevalence, by its logits on validation.

    The data sets that a convolutional head is trained on share a curve, as it learns from them together.
    """
    names = validation.rows["dataset"].to_numpy(str)
    weights = prevalence_weights(validation.labels, names, params.decide.prevalence)
    if isinstance(params.candidates[name], ConvHead):
        names = np.where(np.isin(names, params.split.train_on), "trained on", names)
    return fit_calibration(validation.labels, logits, features, names, weights)


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
        classifier, logits, validation_features = fit(params, candidate, train, validation, features, epochs)
    names = validation.rows["dataset"].to_numpy(str)
    calibration = calibrate(params, candidate, validation, logits, validation_features)
    probabilities = calibration.probabilities(logits, validation_features)
    decision = choose_decision(validation.labels, probabilities, names, params.decide)
    with replacing_folder(out) as folder:
        calibrated(classifier, calibration).save(folder / MODEL_FILE)
        write_json(folder / DECISION_FILE, decision.as_dict())
    result = validation_scores(validation, probabilities, decision.threshold, params)
    write_json(scores, result)
    with replacing(history) as partial:
        pd.DataFrame(epochs.rows).to_csv(partial, index=False)
    shutil.rmtree(unfinished, ignore_errors=True)
    log.info("%s: F1 %.4f, AUROC %.4f on %d validation images", candidate, result["f1"], result["auroc"], result["n"])


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
