r"""Measures how good a probe is on concrete of a kind that it has never seen.

    python -m benchmarks.leave_one_source_out --metu metu-subset.zip --sdnet sdnet-subset.zip sdnet-more.zip \
        --uav75 uav75-trainval.zip --cfd cfd-even.zip --params examples/params.metu-and-sdnet.yaml --cache DIR

Each source in turn is left out: METU and the decks, pavements and walls of SDNET2018. The probe of --params is trained,
calibrated and given its threshold on the others as by the stages, then scored on every image of the source left out;
a data set keeps its head while any of its sources is left. UAV75 and CFD are only measured, by the probe that is
trained on all four; their masks label tiles. Validation has every fourth block of eight neighbouring photos of a
surface, since neighbours show the same wall, and is not trained on.

Prints for each source the AUROC of the probability, and of the logit before it is calibrated; balanced accuracy; the
calibration error (ECE); the share of cracks missed at the threshold that 5 % of the intact images exceed; the share of
images for review, and of cracks called intact without one; with 95 % intervals over photos; then the mean and the worst
source. Images are embedded once and kept in --cache, for each backbone; other penalties or components of a recipe take
minutes.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from pipeline import embed
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.group_split import build_manifest
from pipeline.data.images import IMAGES_FILE, LabelledImages
from pipeline.data.near_duplicates import find_copies
from pipeline.data.training_images import images_of_side
from pipeline.evaluation.bootstrap import MIN_GROUPS, resampled_groups, scores_with_intervals
from pipeline.models.calibration import Calibration, Values, fit_calibration
from pipeline.models.decision import Decision, choose_decision, prevalence_weights
from pipeline.models.linear_head import LinearHead
from pipeline.models.metrics import Labels
from pipeline.params import Params, Probe
from pipeline.split import read_inventories
from pipeline.training.checkpoints import TrainingHistory, checkpoint_folder
from pipeline.training.features import features_of
from pipeline.training.probe import TrainingRows, fit_probe, rows_by_head

RECIPE = Path("examples/params.metu-and-sdnet.yaml")
MASKED: dict[str, dict[str, Any]] = {  # tiles about the size at which the source shows cracks as SDNET2018's do
    "uav75": {
        "photo_pattern": r"(DSC\d+)",  # DSC00552b.jpg is another part of the photo DSC00552
        "masks": {
            "folders": {"train_img": "train_lab", "val_img": "val_lab"}, "crack": [255], "tile_px": 128,
            "min_crack_px": 16,
        },
    },
    "cfd": {"masks": {"folders": {"image": "groundTruth"}, "crack": [2], "tile_px": 160, "min_crack_px": 20}},
}  # fmt: skip
TRAINED_ON = ("metu", "sdnet")
BLOCK_PHOTOS = 8
FALSE_ALARMS = 0.05


def recipe(file: Path, archives: dict[str, list[Path]], cache: Path) -> Params:
    """Return the params of a recipe with these archives as sources, and UAV75 and CFD as external test sets."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    known = settings["datasets"] | MASKED
    settings["datasets"] = {}
    for name, paths in archives.items():
        # several archives of a data set are batches in one folder
        sources = hashlib.sha256("".join(f"{path} {path.stat().st_size}" for path in paths).encode()).hexdigest()
        folder = cache / "sources" / sources[:16] / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            link = folder / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        settings["datasets"][name] = known[name] | {"source": str(folder)}
    settings["split"] |= {"train_on": TRAINED_ON, "photos": {}}
    return Params.model_validate(settings)


def ingested(params: Params, cache: Path) -> tuple[pd.DataFrame, Path]:
    """Ingest each data set that the cache lacks; return the manifest, with the column source, and the data sets."""
    described = "".join(dataset.model_dump_json() for dataset in params.datasets.values())
    folder = cache / "datasets" / hashlib.sha256(described.encode()).hexdigest()[:16]
    for name, dataset in params.datasets.items():
        if not (folder / name / IMAGES_FILE).exists():
            pack_dataset(dataset, params.ingest, folder / name)
    images = read_inventories(folder, list(params.datasets))
    pairs, _ = find_copies(images, LabelledImages(images, folder), params.split.copies)
    # where photos are named they are the groups: two walls that are taken for one must not join two blocks
    has_photo = images["photo"].notna().to_numpy()
    pairs = pairs[~has_photo[pairs["first"]] & ~has_photo[pairs["second"]]]
    manifest = build_manifest(images, pairs, params.split)
    surfaces = manifest["dataset"] + "/" + manifest["slice"]
    source = surfaces.where(manifest["dataset"] == "sdnet", manifest["dataset"])
    side = manifest["split"].replace("test", "train")
    for surface, rows in manifest[has_photo & (manifest["split"] != "external").to_numpy()].groupby(source):
        held_out = validation_photos(rows["photo"])
        side[rows.index] = np.where(rows["photo"].isin(held_out), "validation", "train")
        print(f"{surface}: validation has the photos {', '.join(held_out)}", flush=True)
    return manifest.assign(source=source, split=side), folder


def validation_photos(photos: pd.Series) -> list[str]:
    """Return the photos of every fourth block of neighbouring ones, beginning with the second."""
    names = sorted(photos.unique())
    return [name for i, name in enumerate(names) if i // BLOCK_PHOTOS % 4 == 1]


def missed_cracks(labels: Labels, probabilities: Values, groups: npt.NDArray[np.str_]) -> tuple[float, float, float]:
    """Return the share of cracks missed at the lowest threshold with at most 5 % false alarms, and its interval.

    The interval is NaN with fewer than five groups.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    order = np.argsort(-probabilities)

    def missed(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        drawn = weights[:, numbers[order]]  # (n_resamples, n)
        found, alarms = np.cumsum(drawn * labels[order], axis=1), np.cumsum(drawn * ~labels[order], axis=1)
        is_allowed = alarms <= FALSE_ALARMS * alarms[:, -1:]
        with np.errstate(invalid="ignore"):  # a resample may have no crack
            return np.asarray(1 - (found * is_allowed).max(axis=1) / found[:, -1])

    value = float(missed(np.ones((1, len(names))))[0])
    if len(names) < MIN_GROUPS:
        return value, np.nan, np.nan
    resampled = np.concatenate([missed(weights) for weights in resampled_groups(len(names), len(labels))])
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return value, float(low), float(high)


class Trained(NamedTuple):
    """A probe that was trained, calibrated and given its threshold on some sources."""

    head: LinearHead
    calibration: Calibration
    decision: Decision


def trained_without(
    source: str | None,
    params: Params,
    candidate: Probe,
    rows: dict[str, dict[str, TrainingRows]],
    manifest: pd.DataFrame,
    features: Path,
) -> Trained:
    """Return the probe that is trained on all sources but this one. `rows` has the rows of each head by source."""
    heads: dict[str, list[TrainingRows]] = {}
    for other, by_head in rows.items():
        for name, part in by_head.items():
            heads.setdefault(name, []).extend([part] if other != source else [])
    joined = {name: TrainingRows.concatenated(parts) for name, parts in heads.items() if parts}
    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(1, "blas"):
        history = TrainingHistory(Path(scratch) / "history.jsonl", lambda step, values: None)
        head = fit_probe(joined, candidate, history)
    validation = manifest[(manifest["split"] == "validation") & (manifest["source"] != source)]
    validation = validation.sort_values(["dataset", "row"])
    known, cracked = features_of(validation, features), (validation["label"] == "crack").to_numpy()
    logits = head.logits(known)
    names = validation["dataset"].to_numpy(str)
    weights = prevalence_weights(cracked, names, params.decide.prevalence)
    calibration = fit_calibration(cracked, logits, known, names, weights)
    decision = choose_decision(cracked, calibration.probabilities(logits, known), names, params.decide)
    return Trained(head, calibration, decision)


def measured(model: Trained, images: pd.DataFrame, features: Path) -> dict[str, tuple[float, float, float]]:
    """Return each score on these rows of the manifest, with its interval, NaN where it has none."""
    unseen, labels = features_of(images, features), (images["label"] == "crack").to_numpy()
    logits, groups = model.head.logits(unseen), images["group"].to_numpy(str)
    probabilities = model.calibration.probabilities(logits, unseen)
    scores = scores_with_intervals(labels, probabilities, groups, model.decision)
    scores["logit_auroc"] = float(roc_auc_score(labels, logits))
    result = {"missed": missed_cracks(labels, probabilities, groups)}
    for name in ("auroc", "logit_auroc", "balanced_accuracy", "ece", "review_share", "missed_with_review"):
        interval = scores["interval"].get(name) or {"low": np.nan, "high": np.nan}
        result[name] = scores[name], interval["low"], interval["high"]
    return result


def embedded(
    params: Params, candidate: Probe, cache: Path
) -> tuple[pd.DataFrame, Path, dict[str, dict[str, TrainingRows]]]:
    """Compute what the cache lacks; return the manifest, the features, and by source the training rows of each head."""
    backbone = params.backbones[candidate.backbone]
    manifest, datasets = ingested(params, cache)
    manifest_file = datasets / "manifest.parquet"
    manifest.to_parquet(manifest_file, index=False)
    key = hashlib.sha256(backbone.model_dump_json().encode()).hexdigest()[:16]
    features = datasets / "features" / key
    if not features.exists():  # all in single precision, as what is measured must be
        embed.run(backbone, manifest.assign(split="validation"), datasets, datasets / "unfinished" / key, features)
    (name,) = params.candidates
    unfinished = checkpoint_folder(datasets / "mosaics", manifest_file, params, name)
    rows = {
        str(source): rows_by_head(
            backbone, candidate, images_of_side(part, "train", datasets), features, unfinished / str(source)
        )
        for source, part in manifest[manifest["dataset"].isin(TRAINED_ON)].groupby("source")
    }
    return manifest, features, rows


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*TRAINED_ON, *MASKED):
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, help="archives of this data set")
    parser.add_argument("--params", type=Path, default=RECIPE, help="the recipe: a params file with one probe")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is computed once")
    args = parser.parse_args()
    archives = {name: [path.absolute() for path in getattr(args, name)] for name in (*TRAINED_ON, *MASKED)}
    params = recipe(args.params, archives, args.cache.absolute())
    ((name, candidate),) = params.candidates.items()
    if not isinstance(candidate, Probe):
        parser.error(f"the candidate {name} of {args.params} is no probe")
    manifest, features, rows = embedded(params, candidate, args.cache)
    columns = ("auroc", "logit_auroc", "balanced_accuracy", "ece", "missed", "review_share", "missed_with_review")
    print(f"| left out | images | photos | {' | '.join(columns)} |\n| --- |{' --: |' * (2 + len(columns))}")
    all_scores = []
    for left_out in (*rows, None):
        model = trained_without(left_out, params, candidate, rows, manifest, features)
        is_measured = manifest["source"] == left_out if left_out else manifest["dataset"].isin(list(MASKED))
        for source, part in manifest[is_measured].sort_values("row").groupby("source"):
            scores = measured(model, part, features)
            cells = [
                "{:.3f} ({:.3f} to {:.3f})".format(*scores[name]).removesuffix(" (nan to nan)") for name in columns
            ]
            print(f"| {source} | {len(part):,} | {part['group'].nunique()} | {' | '.join(cells)} |", flush=True)
            all_scores.append([scores[name][0] for name in columns])
    table = np.array(all_scores)
    is_low_bad = np.array([True, True, True, False, False, False, False])
    for title, values in (
        ("mean", table.mean(axis=0)), ("worst", np.where(is_low_bad, table.min(axis=0), table.max(axis=0))),
    ):  # fmt: skip
        print(f"| **{title}** | | | {' | '.join(f'{value:.3f}' for value in values)} |")


if __name__ == "__main__":
    main()
