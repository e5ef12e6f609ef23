"""Train one candidate, calibrate it and choose its threshold and review band, on train and validation alone.

Writes into --out the exported graph model.keras and decision.json; --scores, its scores on validation; --history, a row
an epoch. Curves go to MLflow as they come, where a tracking server answers.
"""

import hashlib
import logging
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.backbones import build_backbone
from pipeline.classifier import DECISION_FILE, MODEL_FILE
from pipeline.decision import choose_decision, fit_platt
from pipeline.files import replacing, replacing_folder, write_json
from pipeline.images import LabelledImages
from pipeline.metrics import log_loss, scores
from pipeline.network import build_classifier, calibrated, run_in_batches
from pipeline.params import Backbone, Params, Probe, load_params, named
from pipeline.recipes import Features, History, fit_finetune, fit_probe
from pipeline.stage import run_main, stage_parser
from pipeline.tf import keras
from pipeline.tracking import live_run

log = logging.getLogger(__name__)


def side_of(manifest: pd.DataFrame, split: str, datasets: Path) -> LabelledImages:
    """Return one side of the manifest, data sets one after the other."""
    rows = manifest[manifest["split"] == split].sort_values(["dataset", "row"])
    return LabelledImages(rows[["dataset", "row", "label"]], datasets)


def features_of(images: LabelledImages, folder: Path) -> Features:
    """Return the cached features of the images, float32, (n, n_features)."""
    parts = [
        np.load(folder / f"{name}.npy", mmap_mode="r")[rows["row"].to_numpy()]
        for name, rows in images.rows.groupby("dataset", sort=False)
    ]
    return np.concatenate(parts)


def logits_of(classifier: keras.Model, images: LabelledImages) -> npt.NDArray[np.float32]:
    """Return the uncalibrated logits of all images, (n,)."""
    logits = np.empty(len(images), np.float32)
    for positions, outputs in run_in_batches(classifier, images, progress="validating"):
        logits[positions] = outputs["logit"][:, 0]
    return logits


def checkpoint_folder(checkpoints: Path, manifest: Path, params: Params, name: str) -> Path:
    """Return the folder of unfinished work, one for each setting, so that a new setting never resumes an old run."""
    candidate = named(params.candidates, name, "candidate")
    digest = hashlib.sha256(manifest.read_bytes())
    digest.update(candidate.model_dump_json().encode())
    digest.update(params.backbones[candidate.backbone].model_dump_json().encode())
    return checkpoints / digest.hexdigest()[:16]


def fit(
    params: Params, name: str, train: LabelledImages, validation: LabelledImages, features: Path, history: History
) -> tuple[keras.Model, npt.NDArray[np.float32]]:
    """Train candidate `name`; return the uncalibrated graph and its logits on validation, (n_validation,)."""
    candidate = params.candidates[name]
    backbone: Backbone = params.backbones[candidate.backbone]
    if isinstance(candidate, Probe):
        known = features_of(validation, features)
        head = fit_probe((features_of(train, features), train.labels), (known, validation.labels), candidate, history)
        network = build_backbone(backbone.architecture)
        kernel, bias = head.get_weights()
        return build_classifier(network, backbone.image_size_px, [head]), (known @ kernel + bias)[:, 0]
    classifier = fit_finetune(backbone.architecture, backbone.image_size_px, train, validation, candidate, history)
    return classifier, logits_of(classifier, validation)


def run(
    params: Params,
    name: str,
    *,
    datasets: Path,
    manifest_path: Path,
    features: Path,
    checkpoints: Path,
    out: Path,
    scores_path: Path,
    history_path: Path,
) -> None:
    """Train candidate `name` and write what it has become."""
    unfinished = checkpoint_folder(checkpoints, manifest_path, params, name)
    manifest = pd.read_parquet(manifest_path)
    train, validation = (side_of(manifest, split, datasets) for split in ("train", "validation"))
    with live_run(params, manifest_path, name) as report_epoch:
        history = History(unfinished / "history.jsonl", report_epoch)
        classifier, logits = fit(params, name, train, validation, features, history)
    slope, intercept = fit_platt(validation.labels, logits)
    probabilities = 1 / (1 + np.exp(-(slope * logits.astype(np.float64) + intercept)))
    decision = choose_decision(validation.labels, probabilities, params.decide)
    with replacing_folder(out) as folder:
        calibrated(classifier, slope, intercept).save(folder / MODEL_FILE)
        write_json(folder / DECISION_FILE, decision.as_dict())
    result = scores(validation.labels, probabilities, decision.threshold)
    write_json(scores_path, {"log_loss": log_loss(validation.labels, probabilities), **result})
    with replacing(history_path) as partial:
        pd.DataFrame(history.rows).to_csv(partial, index=False)
    shutil.rmtree(unfinished, ignore_errors=True)
    log.info("%s: F1 %.4f, AUROC %.4f on %d validation images", name, result["f1"], result["auroc"], result["n"])


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--candidate", required=True, help="its name in params.yaml")
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file of split")
    parser.add_argument("--features", type=Path, required=True, help="folder of the backbone's features")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for unfinished work")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--scores", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--history", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    run(
        load_params(args.params),
        args.candidate,
        datasets=args.datasets,
        manifest_path=args.manifest,
        features=args.features,
        checkpoints=args.checkpoints,
        out=args.out,
        scores_path=args.scores,
        history_path=args.history,
    )


if __name__ == "__main__":
    run_main(main)
