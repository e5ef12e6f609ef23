r"""Measures how many wrong labels `cracks audit --labels` finds, and what training without doubtful labels changes.

    python -m benchmarks.label_audit --archive metu-subset.zip --archive sdnet-subset.zip sdnet-more.zip --cache DIR

Each --archive is a data set, of one archive or several. Labels are made wrong at random: 1, 3 and 5 % of them, with
three seeds each. Printed are the shares of them that are among the first 5 and 10 % of the ranking and that are
contradicted, how many labels are contradicted more than without them, which estimates their number, and the seconds
without embedding.

Then a classifier is trained without the most doubtful labels. Images are in five parts by photo and copies; each is
scored, with its labels as they are, by a classifier of the other four, whose labels alone are ranked. Printed are
errors at the threshold 0.5, with both labels counting equally, and the AUROC.

Images and their features are computed once and kept in --cache.
"""

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.images import PackedImages
from pipeline.data.near_duplicates import find_copies
from pipeline.data.suspect_labels import doubts
from pipeline.models.metrics import Labels
from pipeline.params import Dataset, load_params
from pipeline.training.embedder import embed_in_shards
from pipeline.training.label_audit import (
    BACKBONE,
    L2_PENALTY,
    N_FOLDS,
    Components,
    Groups,
    contradicted,
    cross_fit,
    groups_held_out_together,
    planted_check,
    principal_components,
)

TILES = r"([^/]+)-\d+\.jpg$"  # of SDNET2018; METU's names tell no photo
PLANTED_SHARES = (0.01, 0.03, 0.05)
SEEDS = (0, 1, 2)
DROPPED_SHARES = (0.0, 0.01, 0.02, 0.03)


def ingested(archives: list[Path], folder: Path) -> tuple[PackedImages, Groups]:
    """Return the images of the archives and their groups; what `folder` lacks is computed."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        if not (source / archive.name).exists():
            (source / archive.name).symlink_to(archive.absolute())
    if not (folder / "dataset").exists():
        pack_dataset(Dataset(source=source, photo_pattern=TILES), params.ingest, folder / "dataset")
    images = PackedImages(folder / "dataset")
    pairs, _ = find_copies(images.inventory, images, params.split.copies)
    return images, groups_held_out_together(images.inventory, pairs)


def print_planted(name: str, components: Components, labels: Labels, groups: Groups) -> None:
    """Print a row for each share and seed of labels made wrong."""
    usual = int(contradicted(labels, cross_fit(components, labels, groups)).sum())
    print(f"\n{name}: {len(labels):,} images, {len(np.unique(groups)):,} groups, {usual:,} labels contradicted\n")
    print("| made wrong | seed | in the first 5 % | in the first 10 % | contradicted | estimate | seconds |")
    print("| --: | --: | --: | --: | --: | --: | --: |")
    for share in PLANTED_SHARES:
        for seed in SEEDS:
            started_s = time.perf_counter()
            check = planted_check(components, labels, groups, share, seed)
            cells = (*check.found, check.share_contradicted, check.n_contradicted - usual)
            took_s = time.perf_counter() - started_s
            print(f"| {check.n_planted} | {seed} | {'{:.3f} | {:.3f} | {:.3f} | {}'.format(*cells)} | {took_s:.1f} |")


def print_without_doubtful(components: Components, labels: Labels, groups: Groups) -> None:
    """Print a row for each share of doubtful labels that is left out of training."""
    probabilities = {share: np.empty(len(labels)) for share in DROPPED_SHARES}
    for train, scored in StratifiedGroupKFold(N_FOLDS).split(components, labels, groups):
        doubt = doubts(labels[train], cross_fit(components[train], labels[train], groups[train]))
        most_doubtful_last = train[np.argsort(doubt, kind="stable")]
        for share, scores in probabilities.items():
            kept = most_doubtful_last[: round((1 - share) * len(train))]
            model = LogisticRegression(C=1 / (L2_PENALTY * len(kept)), max_iter=1000, class_weight="balanced")
            scores[scored] = model.fit(components[kept], labels[kept]).predict_proba(components[scored])[:, 1]
    print("\n| left out | errors | balanced accuracy | AUROC |\n| --: | --: | --: | --: |")
    for share, scores in probabilities.items():
        said = scores >= 0.5
        accuracy, auroc = balanced_accuracy_score(labels, said), roc_auc_score(labels, scores)
        print(f"| {share:.0%} | {(said != labels).sum()} | {accuracy:.4f} | {auroc:.5f} |")


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--archive", type=Path, nargs="+", action="append", required=True, help="the archives of a data set"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is computed once")
    args = parser.parse_args()
    for archives in args.archive:
        name = " and ".join(archive.name for archive in archives)
        sizes = "".join(f"{archive.name} {archive.stat().st_size}" for archive in archives)
        folder = args.cache / hashlib.sha256((sizes + BACKBONE.model_dump_json()).encode()).hexdigest()[:16]
        images, groups = ingested(archives, folder)
        features = embed_in_shards(BACKBONE, images, folder / "features", name)
        labels = (images.inventory["label"] == "crack").to_numpy()
        with threadpool_limits(1, "blas"):
            components = principal_components(features)
            print_planted(name, components, labels, groups)
            print_without_doubtful(components, labels, groups)


if __name__ == "__main__":
    main()
