"""Train one candidate, calibrate it and choose its threshold and review band, on train and validation alone.

Writes into --out the exported graph model.keras and decision.json; --scores, its scores on validation; --history, a row
an epoch. Curves go to MLflow as they come, where a tracking server answers.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from pipeline.calibration import fit_calibration
from pipeline.checkpoints import TrainingHistory, checkpoint_folder
from pipeline.classifier import MODEL_FILE
from pipeline.decision import DECISION_FILE, choose_decision
from pipeline.export import calibrated, linear_classifier
from pipeline.features import Features, features_of
from pipeline.files import replacing, replacing_folder, write_json
from pipeline.images import Chosen, Images, LabelledImages
from pipeline.inference import embedder_of, has_shard, keep_shard, kept_shard, shards_of
from pipeline.metrics import Probabilities, log_loss, scores
from pipeline.mosaics import MAX_SOURCES, MAX_TRACES, Mosaics, Sources, shrunk
from pipeline.network import run_in_batches
from pipeline.orientations import N_OTHERS, OtherOrientations
from pipeline.params import Backbone, MosaicSet, Params, Probe, load_params
from pipeline.probe import Rows, deal_folds, fit_probe, heads_of
from pipeline.recipes import fit_finetune
from pipeline.stage import run_main, stage_parser
from pipeline.tf import keras
from pipeline.traces import Folds, traces_of
from pipeline.tracking import live_run
from pipeline.training_images import TRAINING_SIDES, side_of

log = logging.getLogger(__name__)

Positions = npt.NDArray[np.int64]  # (n,), of images among those of a side


def run_over(classifier: keras.Model, images: LabelledImages) -> tuple[npt.NDArray[np.float32], Features]:
    """Return the uncalibrated logits, (n,), and the features, float16, (n, n_features), of all images."""
    logits = np.empty(len(images), np.float32)
    features = np.empty((len(images), classifier.output["features"].shape[-1]), np.float16)
    for positions, outputs in run_in_batches(classifier, images, progress="validating"):
        logits[positions], features[positions] = outputs["logit"][:, 0], outputs["features"]
    return logits, features


def mosaics_of(
    train: LabelledImages,
    chosen: Positions,
    folds: Folds,
    params: MosaicSet,
    size_px: int,
    seed: int,
    *,
    traced: bool = False,
) -> Mosaics:
    """Return the mosaics that params describe, composed of the chosen training images alone.

    Args:
        train: all training images.
        chosen: positions of some, (n,).
        folds: of the chosen ones, (n,).
        params: what mosaics are wanted.
        size_px: of a mosaic.
        seed: decides what each is composed of.
        traced: whether cracks are traced and drawn across sound cells.
    """
    rng = np.random.default_rng(seed)
    if len(chosen) > MAX_SOURCES:
        some = np.sort(rng.choice(len(chosen), MAX_SOURCES, replace=False))
        chosen, folds = chosen[some], folds[some]
    labels, traces = train.labels[chosen], None
    if traced:
        few = rng.permutation(np.flatnonzero(labels))[:MAX_TRACES]
        traces = traces_of(train, chosen[few], folds[few], size_px)
    sources = Sources(shrunk(train, chosen, size_px // min(params.cells_a_side)), labels, folds, traces)
    return Mosaics(sources, params.cells_a_side, params.n_images, size_px, seed=seed)


def embedded(
    backbone: Backbone, images: Images, unfinished: Path, what: str, *, for_training: bool = False
) -> Features:
    """Return the features of images, float16, (n, n_features), going on from the shards in `unfinished`.

    `for_training`: in the backbone's training precision.
    """
    parts = []
    for shard in tqdm(shards_of(len(images.sizes)), desc=f"embedding {what}", unit=" shards", disable=None):
        if not has_shard(unfinished, shard):
            seen = embedder_of(backbone).features(Chosen(images, shard), for_training=for_training)
            keep_shard(unfinished, shard, seen)
        parts.append(kept_shard(unfinished, shard))
    return np.concatenate(parts)


def rows_of(
    backbone: Backbone, params: Probe, train: LabelledImages, features: Path, unfinished: Path
) -> dict[str, Rows]:
    """Return what each head of a probe learns from, by name.

    There is a head for each data set (but for small ones): it learns from the training images and, where params ask for
    them, their other orientations, and mosaics of them. Another one learns from mosaics with traced cracks instead.
    """
    datasets, groups = (train.rows[column].to_numpy(str) for column in ("dataset", "group"))
    known = features_of(train.rows, features)
    heads: dict[str, Rows] = {}
    for name, chosen in heads_of(datasets, train.labels, groups).items():
        heads |= _rows_of_heads(name, backbone, params, train, chosen, known[chosen], unfinished / name)
    return heads


def _rows_of_heads(
    name: str,
    backbone: Backbone,
    params: Probe,
    train: LabelledImages,
    chosen: Positions,
    known: Features,
    unfinished: Path,
) -> dict[str, Rows]:
    labels, datasets = train.labels[chosen], train.rows["dataset"].to_numpy(str)[chosen]
    folds = deal_folds(labels, train.rows["group"].to_numpy(str)[chosen])
    images = [Rows(known, labels, folds, datasets)]

    turned = np.flatnonzero(np.isin(datasets, params.turn))
    if len(turned):
        others = OtherOrientations(Chosen(train, chosen[turned]))
        seen = embedded(backbone, others, unfinished / "turned", "turned images", for_training=True)
        again = np.tile(turned, N_OTHERS)
        images.append(Rows(seen, labels[again], folds[again], datasets[again]))

    def composed(wanted: MosaicSet | None, kind: str) -> list[Rows]:
        shrunken = np.flatnonzero(np.isin(datasets, wanted.of if wanted else ()))
        if wanted is None or not len(shrunken):
            return []
        size_px, traced = backbone.image_size_px, kind == "traced"
        mosaics = mosaics_of(train, chosen[shrunken], folds[shrunken], wanted, size_px, params.seed, traced=traced)
        seen = embedded(backbone, mosaics, unfinished / kind, "mosaics", for_training=True)
        return [Rows(seen, mosaics.labels, mosaics.folds, np.full(len(seen), kind))]

    heads = {name: Rows.concatenated([*images, *composed(params.mosaics, "mosaics")])}
    if traced := composed(params.traced, "traced"):
        heads[f"{name}, traced"] = Rows.concatenated([*images, *traced])
    return heads


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
        head = fit_probe(rows_of(backbone, candidate, train, features, history.path.parent), candidate, history)
        known = features_of(validation.rows, features)
        return linear_classifier(backbone, head), head.logits(known), known
    classifier = fit_finetune(backbone, train, validation, candidate, history)
    return classifier, *run_over(classifier, validation)


def is_lent(validation: LabelledImages, params: Params) -> npt.NDArray[np.bool_]:
    """Return which images are of photos that outside sets have lent, (n,)."""
    return ~validation.rows["dataset"].isin(params.split.train_on).to_numpy()


def validation_scores(
    validation: LabelledImages, probabilities: Probabilities, threshold: float, params: Params
) -> dict[str, Any]:
    """Return the scores on all of validation, and the log loss by which candidates are compared.

    `selection_loss` is the log loss on the data sets trained on and that on photos lent by outside sets, weighted by
    `select.outside_weight`; without lent photos, the former.
    """
    lent = is_lent(validation, params)
    losses = {
        name: log_loss(validation.labels[chosen], probabilities[chosen]) if chosen.any() else None
        for name, chosen in (("in_domain", ~lent), ("outside", lent))
    }
    weight = params.select.outside_weight if lent.any() else 0.0
    return {
        "selection_loss": (1 - weight) * (losses["in_domain"] or 0.0) + weight * (losses["outside"] or 0.0),
        "log_loss": log_loss(validation.labels, probabilities),
        "log_loss_in_domain": losses["in_domain"],
        "log_loss_outside": losses["outside"],
        **scores(validation.labels, probabilities, threshold),
    }


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
    train, validation = (side_of(manifest, split, datasets) for split in TRAINING_SIDES)
    with live_run(params, manifest_path, name) as report_epoch:
        history = TrainingHistory(unfinished / "history.jsonl", report_epoch)
        classifier, logits, known = fit(params, name, train, validation, features, history)
    calibration = fit_calibration(validation.labels, logits, known, validation.rows["dataset"].to_numpy(str))
    probabilities = calibration.probabilities(logits, known)
    decision = choose_decision(validation.labels, probabilities, params.decide)
    with replacing_folder(out) as folder:
        calibrated(classifier, calibration).save(folder / MODEL_FILE)
        write_json(folder / DECISION_FILE, decision.as_dict())
    result = validation_scores(validation, probabilities, decision.threshold, params)
    write_json(scores_path, result)
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
