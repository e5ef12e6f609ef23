"""Measures how well a probe finds the cracks of a photo when it was trained on all other photos.

    python -m benchmarks.leave_one_photo_out --metu metu-subset.zip --sdnet sdnet-subset.zip

Embeds METU, mosaics of it and SDNET2018 in all orientations, with the settings of examples/params.metu-and-sdnet.yaml.
Then each photo of SDNET is left out in turn, and a probe is trained on METU, the mosaics and the other photos. The
probe is calibrated and its threshold chosen, for the best balanced F1, on out-of-fold scores of these other photos.
Prints for each surface and for all: AUROC, balanced F1, and the calibration error.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pipeline import embed
from pipeline.data.images import PackedImages
from pipeline.data.training_images import images_of_side
from pipeline.models.calibration import Values, fit_platt
from pipeline.models.linear_head import LinearHead
from pipeline.models.metrics import Labels, expected_calibration_error
from pipeline.params import Params, Probe
from pipeline.training.augmentation import N_OTHERS, OtherOrientations
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.embedder import embed_in_shards
from pipeline.training.features import Features
from pipeline.training.hairline_cracks import Folds
from pipeline.training.probe import N_FOLDS, TrainingRows, assign_folds, average_heads, fit_head, rows_by_head

EXAMPLE = Path("examples/params.metu-and-sdnet.yaml")


def balanced_f1(labels: Labels, is_called: Labels) -> float:
    """Return the F1 as if cracked and intact images were equally frequent."""
    found, false = is_called[labels].mean(), is_called[~labels].mean()
    return float(2 * found / (found + false + 1))


def best_threshold(labels: Labels, logits: Values) -> float:
    """Return the threshold, as a probability calibrated on these logits, with the best balanced F1.

    With equally frequent classes that is half of the best F1 (Lipton, Elkan and Naryanaswamy, Optimal thresholding of
    classifiers to maximize F1 measure, 2014); its odds are then scaled to the real class frequencies. The empirically
    best threshold would depend on a few of some hundred cracks.
    """
    best_f1 = max(balanced_f1(labels, logits >= level) for level in np.quantile(logits, np.linspace(0.02, 0.98, 97)))
    odds = best_f1 / (2 - best_f1) * labels.sum() / (~labels).sum()
    return float(odds / (1 + odds))


class Scored(NamedTuple):
    """Scores of tiles by probes that were not trained on their photos: (n,) each."""

    logits: Values
    probabilities: Values
    called: Labels


def leave_one_out(
    base: TrainingRows,
    tiles: TrainingRows,
    turned: TrainingRows,
    photos: npt.NDArray[np.str_],
    params: Probe,
    folder: Path,
) -> Scored:
    """Return the scores of each tile by a probe that was not trained on its photo.

    Args:
        base: training rows of the head of the other data set.
        tiles: training rows of the tiles, upright.
        turned: the same tiles in their other orientations, one orientation after the other.
        photos: photo of each tile, (n,).
        params: of the probe.
        folder: for the histories, which are discarded.
    """
    base_head = fit_head(base, params, discarded_history(folder), "base")

    def probe_of(some: Labels, folds: Folds) -> LinearHead:
        upright, other = chosen(tiles, some), chosen(turned, np.tile(some, N_OTHERS))
        upright, other = upright._replace(folds=folds), other._replace(folds=np.tile(folds, N_OTHERS))
        rows = TrainingRows.concatenated([upright, other])
        own_head = fit_head(rows, params, discarded_history(folder), "tiles")
        return average_heads({"base": base_head, "tiles": own_head}, {"base": base, "tiles": rows})

    def left_out(photo: str) -> tuple[Labels, Values, Values, Labels]:
        here = photos == photo
        folds = np.full(len(photos), -1)
        folds[~here] = assign_folds(tiles.labels[~here], photos[~here])
        inner = np.empty(len(photos))
        for fold in range(N_FOLDS):
            some = ~here & (folds != fold)
            inner_folds = assign_folds(tiles.labels[some], photos[some])
            inner[folds == fold] = probe_of(some, inner_folds).logits(tiles.features[folds == fold])
        threshold = best_threshold(tiles.labels[~here], inner[~here])
        curve = fit_platt(tiles.labels[~here], inner[~here])
        logits = probe_of(~here, folds[~here]).logits(tiles.features[here]).astype(np.float64)
        probabilities = curve.probabilities(logits)
        return here, logits, probabilities, probabilities >= threshold

    scored = Scored(np.empty(len(photos)), np.empty(len(photos)), np.empty(len(photos), bool))
    names = np.unique(photos)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:  # one core per probe
        for here, *scores in tqdm(pool.map(left_out, names), desc="leaving out", unit=" photos", total=len(names)):
            for every, part in zip(scored, scores, strict=True):
                every[here] = part
    return scored


def chosen(rows: TrainingRows, which: Labels) -> TrainingRows:
    """Return some of the rows."""
    return TrainingRows(*(getattr(rows, name)[which] for name in vars(rows)))


def discarded_history(folder: Path) -> TrainingHistory:
    """Return a history that reports no progress."""
    return TrainingHistory(Path(tempfile.mkdtemp(dir=folder)) / "history.jsonl", lambda step, values: None)


def rows_without_folds(features: Features, inventory: pd.DataFrame, n_times: int) -> TrainingRows:
    """Return the rows of features whose labels are those of the inventory, so many times over."""
    labels = np.tile((inventory["label"] == "crack").to_numpy(), n_times)
    return TrainingRows(features, labels, np.full(len(labels), -1), np.full(len(labels), "sdnet"))


def prepared(metu: Path, sdnet: Path, folder: Path) -> Params:
    """Run the stages up to `split` in `folder`; return the params."""
    settings = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    settings["datasets"]["metu"]["source"], settings["datasets"]["sdnet"]["source"] = str(metu), str(sdnet)
    params_file = folder / "params.yaml"
    params_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    params = Params.model_validate(settings)

    def run(stage: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"pipeline.{stage}", "--params", str(params_file), *arguments]
        subprocess.run(command, check=True)

    at = {name: str(folder / name) for name in ("datasets", "validated", "manifest.parquet")}
    for name in ("metu", "sdnet"):
        run("ingest", "--dataset", name, "--out", f"{at['datasets']}/{name}")
        run(
            "validate", "--name", name, "--dataset", f"{at['datasets']}/{name}", "--context", str(folder / "gx"),
            "--report", str(folder / "v.json"), "--page", str(folder / "v.html"),
            "--result", f"{at['validated']}/{name}.json",
        )  # fmt: skip
    run(
        "split", "--datasets", at["datasets"], "--validated", at["validated"], "--manifest", at["manifest.parquet"],
        "--summary", str(folder / "s.json"), "--context", str(folder / "gx"),
        "--report", str(folder / "vs.json"), "--page", str(folder / "vs.html"),
    )  # fmt: skip
    return params


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="archive of METU's layout")
    parser.add_argument("--sdnet", type=Path, required=True, help="archive of SDNET2018's layout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        params = prepared(args.metu.absolute(), args.sdnet.absolute(), folder)
        ((name, candidate),) = params.candidates.items()
        assert isinstance(candidate, Probe)  # noqa: S101 - of the example
        backbone = params.backbones[candidate.backbone]
        manifest = pd.read_parquet(folder / "manifest.parquet").query("dataset == 'metu'")
        metu = images_of_side(manifest, "train", folder / "datasets")
        print(f"embedding what {name} learns from", flush=True)
        embed.run(backbone, manifest, folder / "datasets", folder / "unfinished" / "metu", folder / "features")
        (base,) = rows_by_head(backbone, candidate, metu, folder / "features", folder / "unfinished").values()
        images = PackedImages(folder / "datasets" / "sdnet")
        upright = embed_in_shards(backbone, images, folder / "unfinished" / "tiles", "tiles")
        seen = embed_in_shards(backbone, OtherOrientations(images), folder / "unfinished" / "turned", "turned tiles")
        surfaces, photos = (images.inventory[column].to_numpy(str) for column in ("slice", "photo"))
        tiles = rows_without_folds(upright, images.inventory, 1)
        turned = rows_without_folds(seen, images.inventory, N_OTHERS)
        scored = leave_one_out(base, tiles, turned, photos, candidate, folder)
    labels = tiles.labels
    print("| surface | tiles | AUROC | balanced F1 | ECE |\n| --- | --: | --: | --: | --: |")
    for surface in [*np.unique(surfaces), "all"]:
        here = (surfaces == surface) | (surface == "all")
        auroc, f1 = roc_auc_score(labels[here], scored.logits[here]), balanced_f1(labels[here], scored.called[here])
        ece = expected_calibration_error(labels[here], scored.probabilities[here])
        print(f"| {surface} | {here.sum():,} | {auroc:.3f} | {f1:.3f} | {ece:.3f} |")


if __name__ == "__main__":
    main()
