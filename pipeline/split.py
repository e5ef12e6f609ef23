"""Deal all images to train, validation and test so that no copy and no photo is on two sides.

Images that are copies of each other, or tiles of one photo, form a group; the side follows from a hash of the group.
Data sets that are not trained on are outside sets, tested on as a whole. Writes --manifest, a row an image: path,
dataset, row (in the data set's inventory), label, group, split (train, validation, test, outside or excluded).
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.copies import connected_groups, copy_pairs
from pipeline.errors import CracksError, RefusedError
from pipeline.files import replacing, write_json
from pipeline.images import INVENTORY_FILE, THUMBNAIL_SIZE_PX
from pipeline.params import Fractions, Params, Split, load_params
from pipeline.stage import run_main, stage_parser

log = logging.getLogger(__name__)

SIDES = ("train", "validation", "test")


def side_of(group: str, fractions: Fractions, seed: int) -> str:
    """Return train, validation or test for a group, by a hash of its name alone: other groups have no say."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64  # 0..1, uniform
    if position < fractions.train:
        return "train"
    return "validation" if position < fractions.train + fractions.validation else "test"


def group_images(inventory: pd.DataFrame, params: Split) -> pd.Series:
    """Return for each image the name of its group: the smallest sha256 among the images that it is linked with.

    Args:
        inventory: columns dataset, photo (None where unknown), sha256, thumbnail (576 bytes).
        params: the limits by which two images are copies.

    """
    thumbnails = np.frombuffer(b"".join(inventory["thumbnail"]), np.uint8)
    similar = copy_pairs(thumbnails.reshape(-1, THUMBNAIL_SIZE_PX, THUMBNAIL_SIZE_PX), params.copies)
    photos = inventory["dataset"] + "/" + inventory["photo"].fillna("")
    links = [similar, _chain(inventory["sha256"]), _chain(photos[inventory["photo"].notna()])]
    groups = connected_groups(len(inventory), np.concatenate(links))
    return inventory["sha256"].groupby(groups).transform("min")


def _chain(values: "pd.Series[str]") -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return the pairs that link each position with the next one of the same value; shape (n_pairs, 2)."""
    positions = values.index.to_series()
    following = positions.groupby(values).shift(-1)
    linked = following.notna()
    return np.stack([positions[linked], following[linked]], axis=1).astype(np.int64)


def assign(inventory: pd.DataFrame, params: Split) -> pd.DataFrame:
    """Return the manifest of all data sets.

    An image of a data set trained on that shares its group with an outside set is excluded: trained on, it would make
    the outside test one of memory.

    Args:
        inventory: columns dataset, path, row, label, photo, sha256, thumbnail.
        params: who is trained on, fractions, seed and what counts as a copy.

    """
    inventory = inventory.reset_index(drop=True)
    manifest = inventory[["path", "dataset", "row", "label", "sha256"]].copy()
    manifest["group"] = group_images(inventory, params)
    manifest["split"] = [side_of(group, params.fractions, params.seed) for group in manifest["group"]]
    outside = ~manifest["dataset"].isin(params.train_on)
    manifest.loc[manifest["group"].isin(manifest.loc[outside, "group"]), "split"] = "excluded"
    manifest.loc[outside, "split"] = "outside"
    return manifest


def count_leaks(manifest: pd.DataFrame) -> int:
    """Return how many groups, or byte-identical images, are on more than one side; excluded images are on none."""
    used = manifest[manifest["split"] != "excluded"]
    sides = used.groupby("group")["split"].nunique()
    identical = used.groupby("sha256")["split"].nunique()
    return int((sides > 1).sum() + (identical > 1).sum())


def summarise(manifest: pd.DataFrame, params: Split) -> dict[str, int]:
    """Return n_images, n_groups, n_copies (images less distinct ones) and leaks, of the data sets trained on."""
    trained = manifest[manifest["dataset"].isin(params.train_on)]
    n_groups = trained["group"].nunique()
    return {
        "n_images": len(trained),
        "n_groups": n_groups,
        "n_copies": len(trained) - n_groups,
        "n_excluded": int((trained["split"] == "excluded").sum()),
        "leaks": count_leaks(manifest),
    }


def check_sides(manifest: pd.DataFrame) -> None:
    """Raise CracksError unless both labels are on every side."""
    for side in SIDES:
        labels = set(manifest.loc[manifest["split"] == side, "label"])
        if labels != {"crack", "intact"}:
            raise CracksError(
                f"The {side} side has {sorted(labels) or 'no images'}, it needs both crack and intact: too few groups. "
                "Add images, change split.fractions or split.seed in params.yaml, or mend a photo_pattern that takes "
                "everything for one photo."
            )


def read_inventories(datasets: Path, names: list[str]) -> pd.DataFrame:
    """Return the inventories of the named data sets one below the other, with columns dataset and row."""
    parts = []
    for name in names:
        part = pd.read_parquet(datasets / name / INVENTORY_FILE)
        parts.append(part.assign(dataset=name, row=np.arange(len(part))))
    return pd.concat(parts, ignore_index=True)


def check_validated(validated: Path, names: list[str]) -> None:
    """Raise RefusedError unless the contract of every named data set was found green."""
    for name in names:
        receipt = validated / f"{name}.json"
        if not receipt.exists() or not json.loads(receipt.read_text())["success"]:
            raise RefusedError(f"Data set {name} has no green contract. Run `dvc repro validate@{name}` and see why.")


def run(params: Params, datasets: Path, validated: Path, manifest_path: Path, summary_path: Path) -> None:
    """Write the manifest and its summary; refuse a split that leaks."""
    names = list(params.datasets)
    check_validated(validated, names)
    manifest = assign(read_inventories(datasets, names), params.split)
    check_sides(manifest)
    summary = summarise(manifest, params.split)
    if summary["leaks"]:
        raise RefusedError(f"{summary['leaks']} groups are on two sides. This is a defect of the split: report it.")
    with replacing(manifest_path) as partial:
        manifest.to_parquet(partial, index=False)
    write_json(summary_path, summary)
    log.info("%s", ", ".join(f"{side}: {n}" for side, n in manifest["split"].value_counts().items()))


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--validated", type=Path, required=True, help="folder of the contracts' receipts")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    run(load_params(args.params), args.datasets, args.validated, args.manifest, args.summary)


if __name__ == "__main__":
    run_main(main)
