r"""Measures how good a candidate is on concrete of a kind that it has never seen.

    python -m benchmarks.leave_one_source_out --metu metu-subset.zip --sdnet sdnet-subset.zip sdnet-more.zip \
        --uav75 uav75-trainval.zip --cfd cfd-even.zip --params examples/params.starter.yaml --cache DIR

Each source in turn is left out: METU and the decks, pavements and walls of SDNET2018. The candidate of --params is
trained, calibrated and given its threshold on the others by the code of the stage leave_one_source_out, then scored on
every image of the source left out. UAV75 and CFD are only measured, by the candidate that is trained on all four; their
masks label tiles. Validation has every fourth block of eight neighbouring photos of a surface, since neighbours show
the same wall, and is not trained on.

Prints for each source the AUROC; balanced accuracy; the calibration error (ECE); the share of cracks missed at the
threshold that 5 % of the intact images exceed; the share of images for review, and of cracks called intact without one;
with 95 % intervals over photos; then the mean and the worst source. What is computed once, and each source that is
done, is kept in --cache, for each recipe.
"""

import argparse
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from threadpoolctl import threadpool_limits

from pipeline import embed
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.group_split import build_manifest
from pipeline.data.images import IMAGES_FILE, LabelledImages
from pipeline.data.near_duplicates import find_copies
from pipeline.data.training_images import TRAINING_SIDES
from pipeline.evaluation.unseen_sources import AVERAGED, sources_of, summarise_sources
from pipeline.files import write_json
from pipeline.leave_one_source_out import scores_by_source, scores_on, trained_on
from pipeline.params import Params, Probe
from pipeline.split import read_inventories
from pipeline.training.checkpoints import checkpoint_folder

RECIPE = Path("examples/params.starter.yaml")
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
    """Ingest each data set that the cache lacks; return the manifest and the folder of the data sets."""
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
    side = manifest["split"].replace("test", "train")
    for surface, rows in manifest[has_photo & (manifest["split"] != "external").to_numpy()].groupby(
        sources_of(manifest)
    ):
        held_out = validation_photos(rows["photo"])
        side[rows.index] = np.where(rows["photo"].isin(held_out), "validation", "train")
        print(f"{surface}: validation has the photos {', '.join(held_out)}", flush=True)
    return manifest.assign(split=side), folder


def validation_photos(photos: pd.Series) -> list[str]:
    """Return the photos of every fourth block of neighbouring ones, beginning with the second."""
    names = sorted(photos.unique())
    return [name for i, name in enumerate(names) if i // BLOCK_PHOTOS % 4 == 1]


def embedded(params: Params, name: str, manifest: pd.DataFrame, datasets: Path) -> Path:
    """Return the folder of the features that a probe is trained on, computing those that the cache lacks."""
    candidate = params.candidates[name]
    backbone = params.backbones[candidate.backbone]
    features = datasets / "features" / hashlib.sha256(backbone.model_dump_json().encode()).hexdigest()[:16]
    if isinstance(candidate, Probe) and not features.exists():
        embed.run(backbone, manifest, datasets, datasets / "unfinished" / features.name, features)
    return features


def measured(params: Params, name: str, manifest: pd.DataFrame, datasets: Path) -> dict[str, Any]:
    """Return the summary of all sources: those trained on, each left out, and the others, which are only measured."""
    manifest_file = datasets / "manifest.parquet"
    manifest.to_parquet(manifest_file, index=False)
    unfinished = checkpoint_folder(datasets / "trainings", manifest_file, params, name)
    features = embedded(params, name, manifest, datasets)
    left_out = scores_by_source(params, name, manifest, datasets, features, unfinished)
    finished = unfinished / "external.json"
    if not finished.exists():
        rows = manifest.sort_values(["dataset", "row"])
        sides = [LabelledImages(rows[rows["split"] == side], datasets) for side in TRAINING_SIDES]
        classifier = trained_on(params, name, sides, features, unfinished, unfinished / "all")
        external = manifest[manifest["split"] == "external"].groupby("dataset")
        scores = {str(source): scores_on(LabelledImages(rows, datasets), classifier) for source, rows in external}
        write_json(finished, scores)
    return summarise_sources(left_out, json.loads(finished.read_text()))


def cell(scores: dict[str, Any], name: str) -> str:
    """Return a score and, where it has one, its interval."""
    interval = scores["interval"][name]
    return f"{scores[name]:.3f}" + (f" ({interval['low']:.3f} to {interval['high']:.3f})" if interval else "")


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*TRAINED_ON, *MASKED):
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, help="archives of this data set")
    parser.add_argument("--params", type=Path, default=RECIPE, help="the recipe: a params file with one candidate")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is computed once")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    archives = {name: [path.absolute() for path in getattr(args, name)] for name in (*TRAINED_ON, *MASKED)}
    params = recipe(args.params, archives, args.cache.absolute())
    (name,) = params.candidates
    with threadpool_limits(1, "blas"):
        found = measured(params, name, *ingested(params, args.cache.absolute()))
    print(f"| left out | images | photos | {' | '.join(AVERAGED)} |\n| --- |{' --: |' * (2 + len(AVERAGED))}")
    for source, scores in found["scores"].items():
        cells = " | ".join(cell(scores, column) for column in AVERAGED)
        print(f"| {source} | {scores['n']:,} | {scores['n_groups']} | {cells} |")
    means = " | ".join(f"{found['mean'][column]:.3f}" for column in AVERAGED)
    print(f"| **mean** | | | {means} |")
    print(f"The worst is {found['worst']}.")


if __name__ == "__main__":
    main()
