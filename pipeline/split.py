"""Deal all images to train, validation and test so that no copy and no photo is on two sides.

Images that are copies of each other, or tiles of one photo, form a group, which is dealt as a whole; what an earlier
batch decided stands (pipeline/groups.py). Data sets that are not trained on are outside sets, tested on as a whole, but
for photos that params lend to validation. Images of review batches go to training, or are excluded where their group is
on another side; so is an image on whose label reviewers disagree. Writes --manifest, a row an image: path, dataset, row
(in the data set's inventory), batch, label, slice, photo, sha256, group, split (train, validation, test, outside or
excluded); --summary; and the contract of the split as --report and --page. A split that breaks it ends with exit
code 3.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.contract import check, split_rules
from pipeline.contract_page import Tile, render_contract
from pipeline.copies import find_copies
from pipeline.errors import CracksError, RefusedError
from pipeline.files import replacing, write_json, write_text
from pipeline.groups import EXCLUDED, Dealing, Pairs, deal
from pipeline.images import INVENTORY_FILE, LabelledImages
from pipeline.params import Params, Split, load_params
from pipeline.path_metadata import qualified_photos
from pipeline.stage import run_main, stage_parser
from pipeline.validate import finish

log = logging.getLogger(__name__)

SIDES = ("train", "validation", "test")
COLUMNS = ["path", "dataset", "row", "batch", "label", "slice", "photo", "sha256"]
MAX_SHARE_OF_A_GROUP = 0.5  # of a label, or of a slice: a larger one leaves nothing to compare


def read_inventories(datasets: Path, names: list[str]) -> pd.DataFrame:
    """Return the inventories of the named data sets one below the other, with columns dataset and row."""
    parts = []
    for name in names:
        part = pd.read_parquet(datasets / name / INVENTORY_FILE)
        parts.append(part.assign(dataset=name, row=np.arange(len(part))))
    return pd.concat(parts, ignore_index=True)


def age(images: pd.DataFrame, train_on: tuple[str, ...]) -> pd.Series:
    """Return when each image came, 0 the oldest: outside sets, then the first batch of each data set, and so on."""
    order = images.groupby("dataset")["batch"].transform(lambda batches: pd.factorize(batches)[0])
    return (order + 1).where(images["dataset"].isin(train_on), 0).astype(int)


def links_between(images: pd.DataFrame, pairs: pd.DataFrame) -> Pairs:
    """Return the pairs of positions that belong together: copies, and neighbours among the tiles of a photo."""
    photos = qualified_photos(images).dropna()
    following = photos.index.to_series().groupby(photos).shift(-1).dropna()
    tiles = np.stack([following.index.to_numpy(), following.to_numpy()], axis=1).astype(np.int64)
    return np.concatenate([pairs[["first", "second"]].to_numpy(np.int64), tiles])


def fixed_sides(images: pd.DataFrame, train_on: tuple[str, ...]) -> pd.Series:
    """Return the side of images that are not dealt, None of others: what is not trained on, and reviews.

    Reviews are of images that a model was unsure of or that someone doubted: no sample that one could test on.
    """
    sides = pd.Series(None, index=images.index, dtype=object)
    sides[images["is_review"].astype(bool)] = "train"
    sides[~images["dataset"].isin(train_on)] = "outside"
    return sides


def assign(images: pd.DataFrame, pairs: pd.DataFrame, params: Split) -> pd.DataFrame:
    """Return the manifest: the images with their group and split.

    Args:
        images: of `read_inventories`, in the order of their age.
        pairs: copies among them, columns first and second (positions).
        params: who is trained on, shares, seed, and photos that are given to a side.
    """
    outside = ~images["dataset"].isin(params.train_on)
    photo = qualified_photos(images)
    lent = photo.map(params.photo_sides).where(outside).dropna()
    dealt = deal(
        pd.DataFrame(
            {
                "batch": age(images, params.train_on),
                "sha256": images["sha256"],
                # by the label that it came with: a review that corrects it must not deal its neighbours anew
                "stratum": images["dataset"] + "/" + images["slice"] + "/" + images["first_label"],
                "photo": photo,
                "fixed_side": fixed_sides(images, params.train_on),
            }
        ),
        links_between(images, pairs),
        Dealing(params.fractions, params.seed, params.photo_sides),
    )
    manifest = images[COLUMNS].assign(group=dealt["group"], split=dealt["side"])
    manifest.loc[lent.index, "split"] = lent
    manifest.loc[images["disputed"].notna(), "split"] = EXCLUDED  # dealt as before, so that no other image moves
    return manifest


def with_checks(manifest: pd.DataFrame, pairs: pd.DataFrame, train_on: tuple[str, ...]) -> pd.DataFrame:
    """Return the manifest with the columns that the contract of the split speaks of, each 0 or 1.

    They are computed from the manifest itself, and from the copies; not from how it was dealt.
    """
    split, used = manifest["split"], manifest["split"] != EXCLUDED
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()

    def touched(bad: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> pd.Series:
        return pd.Series(manifest.index.isin(np.concatenate([first[bad], second[bad]])), manifest.index).astype(int)

    def on_two_sides(key: pd.Series) -> pd.Series:
        return split[used].groupby(key[used]).transform("nunique").reindex(manifest.index, fill_value=1) > 1

    both_used = used.to_numpy()[first] & used.to_numpy()[second]
    side, dataset, label = (manifest[column].to_numpy() for column in ("split", "dataset", "label"))
    outside = ~manifest["dataset"].isin(train_on).to_numpy()
    leaking = touched(both_used & (side[first] != side[second]))
    return manifest.assign(
        is_leak=(on_two_sides(manifest["group"]) | on_two_sides(qualified_photos(manifest))).astype(int) | leaking,
        is_twin_across_sides=on_two_sides(manifest["sha256"]).astype(int),
        is_shared=touched(outside[first] != outside[second]),
        is_conflict=touched((label[first] != label[second]) & (dataset[first] != dataset[second])),
        is_excluded=(~used).astype(int),
    )


def check_sides(manifest: pd.DataFrame) -> None:
    """Raise CracksError unless both labels are on every side and no group swallows a label or a slice."""
    dealt = manifest[manifest["split"].isin(SIDES)]
    for side in SIDES:
        labels = set(dealt.loc[dealt["split"] == side, "label"])
        if labels != {"crack", "intact"}:
            raise CracksError(
                f"The {side} side has {sorted(labels) or 'no images'}, it needs both crack and intact: too few groups. "
                "Add images, change split.fractions or split.seed in params.yaml, or mend a photo_pattern that takes "
                "everything for one photo."
            )
    for column in ("label", "slice"):
        for value, rows in dealt.groupby(column):
            sizes = rows["group"].value_counts()
            if sizes.iloc[0] > max(1, MAX_SHARE_OF_A_GROUP * len(rows)):
                example = rows.loc[rows["group"] == sizes.index[0], "path"].iloc[0]
                raise CracksError(
                    f"One group holds {sizes.iloc[0]} of the {len(rows)} images of {column} {value!r}, {example} among "
                    "them. Copies, or a photo_pattern that takes many photos for one, tie them together: mend it."
                )


def summarise(manifest: pd.DataFrame, train_on: tuple[str, ...]) -> dict[str, int]:
    """Return n_images, n_groups, n_copies (images less groups), n_excluded and leaks, of the data sets trained on."""
    trained = manifest[manifest["dataset"].isin(train_on)]
    n_groups = trained["group"].nunique()
    return {
        "n_images": len(trained),
        "n_groups": n_groups,
        "n_copies": len(trained) - n_groups,
        "n_excluded": int((trained["split"] == EXCLUDED).sum()),
        "leaks": int(manifest["is_leak"].sum() + manifest["is_twin_across_sides"].sum()),
    }


def check_validated(validated: Path, names: list[str]) -> None:
    """Raise RefusedError unless the contract of every named data set was found green."""
    for name in names:
        receipt = validated / f"{name}.json"
        if not receipt.exists() or not json.loads(receipt.read_text())["success"]:
            raise RefusedError(f"Data set {name} has no green contract. Run `dvc repro validate@{name}` and see why.")


def run(
    params: Params,
    *,
    datasets: Path,
    validated: Path,
    manifest_path: Path,
    summary_path: Path,
    report: Path,
    page: Path,
) -> None:
    """Write the manifest, its summary and its contract; refuse a split that leaks."""
    names, train_on = list(params.datasets), params.split.train_on
    check_validated(validated, names)
    images = read_inventories(datasets, names)
    images = images.loc[age(images, train_on).sort_values(kind="stable").index].reset_index(drop=True)
    pairs = find_copies(images, params.split.copies)
    manifest = assign(images, pairs, params.split)
    check_sides(manifest[manifest["dataset"].isin(train_on)])  # an outside set may lend a single photo
    checked = with_checks(manifest, pairs, train_on)
    checked["path"] = checked["dataset"] + "/" + checked["path"]  # two data sets may have files of one path
    rules = check(checked, split_rules())
    summary = summarise(checked, train_on)
    counts = {f"{side} images": f"{n:,}" for side, n in manifest["split"].value_counts().items()}
    headline = counts | {name.removeprefix("n_"): f"{n:,}" for name, n in summary.items()}
    broken = [rule for rule in rules if not rule.success]
    shown = LabelledImages(checked[checked["path"].isin({path for rule in broken for path in rule.paths})], datasets)
    write_text(
        page,
        render_contract(
            name="split",
            is_drawn=params.is_demo,
            facts=headline,
            rules=rules,
            offenders={rule.text: tiles_of(shown, rule.paths) for rule in broken},
            copy_groups=(),
            n_copy_groups=0,
            quarantine=pd.DataFrame(columns=["batch", "path", "reason"]),
            inventory=images,
        ),
    )
    finish("split", rules, headline, report=report, page=page)
    with replacing(manifest_path) as partial:
        manifest.to_parquet(partial, index=False)
    write_json(summary_path, summary)
    log.info("%s", ", ".join(f"{side}: {n}" for side, n in manifest["split"].value_counts().items()))


def tiles_of(images: LabelledImages, paths: Sequence[str]) -> list[Tile]:
    """Return the pictures of those of `images` that are named by `paths`."""
    return [
        Tile(row["path"], row["label"], f"{row['dataset']}, {row['split']}", images.pixels(position))
        for position, row in enumerate(images.rows.to_dict(orient="records"))
        if row["path"] in paths
    ]


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--validated", type=Path, required=True, help="folder of the contracts' receipts")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--page", type=Path, required=True, help="HTML file to write")
    args = parser.parse_args()
    run(
        load_params(args.params),
        datasets=args.datasets,
        validated=args.validated,
        manifest_path=args.manifest,
        summary_path=args.summary,
        report=args.report,
        page=args.page,
    )


if __name__ == "__main__":
    run_main(main)
