"""How well a probe finds the cracks of a photo when it was trained on all other photos.

    python -m benchmarks.leave_one_photo_out --metu metu-subset.zip --sdnet sdnet-subset.zip

Embeds METU, mosaics of it and SDNET2018 as examples/params.metu-and-sdnet.yaml says. Then each photo of SDNET is left
out in turn: a probe learns from METU, the mosaics and the other photos, and its threshold is the one with the best
balanced F1 on those other photos, each scored by a model that had not seen it. Prints for each surface and for all:
AUROC, and F1 with cracked and intact tiles weighed alike.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from pipeline.images import INVENTORY_FILE
from pipeline.metrics import Labels
from pipeline.params import Params, Probe
from pipeline.probe import N_FOLDS, Rows, deal_folds, fit_probe
from pipeline.recipes import History
from pipeline.train import rows_of, side_of

Values = npt.NDArray[np.float64]
EXAMPLE = Path("examples/params.metu-and-sdnet.yaml")


def balanced_f1(labels: Labels, is_called: Labels) -> float:
    """Return the F1 where cracked and intact images count alike."""
    found, false = is_called[labels].mean(), is_called[~labels].mean()
    return float(2 * found / (found + false + 1))


def best_threshold(labels: Labels, logits: Values) -> float:
    """Return the threshold with the best balanced F1."""
    candidates = np.quantile(logits, np.linspace(0.02, 0.98, 97))
    return float(max(candidates, key=lambda threshold: balanced_f1(labels, logits >= threshold)))


def scored(train: Rows, params: Probe, features: npt.NDArray[np.float16], folder: Path) -> Values:
    """Return the logits of `features` by a probe that has learned from `train`."""
    head = fit_probe(train, params, History(folder / "history.jsonl", lambda step, values: None))
    (folder / "history.jsonl").unlink()
    return np.asarray(head.logits(features), np.float64)


def rows_and(rows: Rows, more: Rows) -> Rows:
    """Return both below each other."""
    return Rows(*(np.concatenate([getattr(rows, name), getattr(more, name)]) for name in vars(rows)))


def chosen(rows: Rows, which: Labels) -> Rows:
    """Return some of the rows."""
    return Rows(*(getattr(rows, name)[which] for name in vars(rows)))


def leave_one_out(
    base: Rows, tiles: Rows, photos: npt.NDArray[np.str_], params: Probe, folder: Path
) -> tuple[Values, Labels]:
    """Return the logit of each tile by a probe that has not seen its photo, and whether it is called a crack."""
    logits, called = np.empty(len(photos)), np.empty(len(photos), bool)
    for photo in tqdm(np.unique(photos), desc="leaving out", unit=" photos"):
        others = photos != photo
        known = chosen(tiles, others)
        known = replace(known, folds=deal_folds(known.labels, photos[others]))
        inner = np.empty(len(known.labels))
        for fold in range(N_FOLDS):
            held_out = known.folds == fold
            inner[held_out] = scored(rows_and(base, chosen(known, ~held_out)), params, known.features[held_out], folder)
        threshold = best_threshold(known.labels, inner)
        logits[~others] = scored(rows_and(base, known), params, tiles.features[~others], folder)
        called[~others] = logits[~others] >= threshold
    return logits, called


def prepared(metu: Path, sdnet: Path, folder: Path) -> Params:
    """Run the stages up to `embed` in `folder`; return the params."""
    settings = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    settings["datasets"]["metu"]["source"], settings["datasets"]["sdnet"]["source"] = str(metu), str(sdnet)
    params_file = folder / "params.yaml"
    params_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    params = Params.model_validate(settings)

    def run(stage: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"pipeline.{stage}", "--params", str(params_file), *arguments]
        subprocess.run(command, check=True)

    at = {name: str(folder / name) for name in ("datasets", "validated", "manifest.parquet", "features", "unfinished")}
    for name in ("metu", "sdnet"):
        run("ingest", "--dataset", name, "--out", f"{at['datasets']}/{name}")
        run(
            "validate", "--name", name, "--dataset", f"{at['datasets']}/{name}", "--report", str(folder / "v.json"),
            "--page", str(folder / "v.html"), "--receipt", f"{at['validated']}/{name}.json",
        )  # fmt: skip
    run(
        "split", "--datasets", at["datasets"], "--validated", at["validated"], "--manifest", at["manifest.parquet"],
        "--summary", str(folder / "s.json"), "--report", str(folder / "vs.json"), "--page", str(folder / "vs.html"),
    )  # fmt: skip
    (backbone,) = params.backbones
    run(
        "embed", "--backbone", backbone, "--datasets", at["datasets"], "--checkpoints", at["unfinished"], "--out",
        at["features"],
    )  # fmt: skip
    return params


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="archive of METU's layout")
    parser.add_argument("--sdnet", type=Path, required=True, help="archive of SDNET2018's layout")
    parser.add_argument("--strength", type=float, default=0.01, help="of the penalty")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        params = prepared(args.metu.absolute(), args.sdnet.absolute(), folder)
        ((name, candidate),) = params.candidates.items()
        assert isinstance(candidate, Probe)  # noqa: S101 - of the example
        manifest = pd.read_parquet(folder / "manifest.parquet")
        metu = side_of(manifest[manifest["dataset"] == "metu"], "train", folder / "datasets")
        print(f"embedding what {name} learns from", flush=True)
        base = rows_of(params.backbones[candidate.backbone], candidate, metu, folder / "features", folder / "mosaics")
        inventory = pd.read_parquet(folder / "datasets" / "sdnet" / INVENTORY_FILE)
        labels, photos = (inventory["label"] == "crack").to_numpy(), inventory["photo"].to_numpy(str)
        features = np.load(folder / "features" / "sdnet.npy")
        tiles = Rows(features, labels, np.zeros(len(labels), np.int64), np.full(len(labels), "sdnet"))
        one_strength = candidate.model_copy(update={"strengths": (args.strength,)})
        logits, called = leave_one_out(base, tiles, photos, one_strength, folder)
    print("| surface | tiles | AUROC | balanced F1 |\n| --- | --: | --: | --: |")
    surfaces = inventory["slice"].to_numpy(str)
    for surface in [*np.unique(surfaces), "all"]:
        here = (surfaces == surface) | (surface == "all")
        auroc, f1 = roc_auc_score(labels[here], logits[here]), balanced_f1(labels[here], called[here])
        print(f"| {surface} | {here.sum():,} | {auroc:.3f} | {f1:.3f} |")


if __name__ == "__main__":
    main()
