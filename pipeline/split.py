"""Split all images into train, validation and test so that no near-duplicates and no photo are on two sides.

Data sets that are not trained on are external test sets, but for photos that params.yaml holds out for validation.
Images of review batches go to train, or are excluded if their group is on another side or reviewers disagree.

Writes --manifest, a row per image: path, dataset, row (in the data set's inventory), batch, label, slice, photo,
sha256, group, split (train, validation, test, external or excluded); --summary; and the validation result of the split
as --report and --page. Ends with exit code 3 if the split breaks its contract.
"""

import json
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd

from pipeline.data.contract import NONE_DOUBTFUL, Rule, check, enforce, none_of
from pipeline.data.contract_page import doubtful_groups, render_contract, violations
from pipeline.data.group_split import EXCLUDED, SIDES, arrival_order, build_manifest
from pipeline.data.images import INVENTORY_FILE, LabelledImages
from pipeline.data.near_duplicates import connected_groups, find_copies
from pipeline.data.path_metadata import qualified_photos
from pipeline.errors import CracksError, RefusedError
from pipeline.files import replacing, write_json, write_text
from pipeline.params import CONTENT_ID_LENGTH, Params
from pipeline.stage import run_main, stage_main

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

log = logging.getLogger(__name__)

MAX_SHARE_OF_A_GROUP = 0.5  # of a label or a slice; with a larger group, the sides cannot be compared


def read_inventories(datasets: Path, names: list[str]) -> pd.DataFrame:
    """Return the concatenated inventories of the named data sets, with columns dataset and row."""
    parts = {name: pd.read_parquet(datasets / name / INVENTORY_FILE) for name in names}
    return pd.concat(parts, names=["dataset", "row"]).reset_index()


def check_validated(validated: Path, names: list[str]) -> None:
    """Raise RefusedError unless every named data set has passed its contract."""
    for name in names:
        result = validated / f"{name}.json"
        if not result.exists() or not json.loads(result.read_text())["success"]:
            raise RefusedError(
                f"Data set {name} has not passed its contract. Run `dvc repro validate@{name}` to see why."
            )


def with_checks(
    manifest: pd.DataFrame, pairs: pd.DataFrame, doubtful: pd.DataFrame, train_on: tuple[str, ...]
) -> pd.DataFrame:
    """Return the manifest with the columns that the rules of the split refer to, each 0 or 1.

    They are computed from the finished manifest and the near-duplicates, independently of how sides were assigned.
    `doubtful` are pairs of different data sets.
    """
    split, used = manifest["split"], manifest["split"] != EXCLUDED
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()

    def in_pairs(linked: pd.DataFrame) -> pd.Series:
        return pd.Series(manifest.index.isin(linked[["first", "second"]].to_numpy().ravel()), manifest.index).astype(
            int
        )

    def on_two_sides(key: pd.Series) -> pd.Series:
        return split[used].groupby(key[used]).transform("nunique").reindex(manifest.index, fill_value=1) > 1

    both_used = used.to_numpy()[first] & used.to_numpy()[second]
    side, dataset, label = (manifest[column].to_numpy() for column in ("split", "dataset", "label"))
    external = ~manifest["dataset"].isin(train_on).to_numpy()
    leaking = in_pairs(pairs[both_used & (side[first] != side[second])])
    return manifest.assign(
        is_leak=(on_two_sides(manifest["group"]) | on_two_sides(qualified_photos(manifest))).astype(int) | leaking,
        is_duplicate_across_sides=on_two_sides(manifest["sha256"]).astype(int),
        is_shared=in_pairs(pairs[external[first] != external[second]]),
        is_conflict=in_pairs(pairs[(label[first] != label[second]) & (dataset[first] != dataset[second])]),
        is_doubtful=in_pairs(doubtful),
    )


def split_rules() -> list["Expectation"]:
    """Return the rules for all data sets together, over the columns of the manifest and `with_checks`."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    forbidden = {
        "is_leak": "no group, and no photo, is on two sides of the split",
        "is_duplicate_across_sides": "no two images of the same bytes are on two sides",
        "is_shared": "no external image has a copy in a data set trained on",
        "is_conflict": "no image has a copy with the other label in another data set",
    }
    return [
        *(none_of(column, words) for column, words in forbidden.items()),
        gxe.ExpectColumnValuesToNotBeInSet(
            column="split",
            value_set=[EXCLUDED],
            mostly=0.99,
            severity=FailureSeverity.WARNING,
            notes="at most 1.0 % of the images are excluded",
        ),
        none_of("is_doubtful", NONE_DOUBTFUL, severity=FailureSeverity.WARNING),
    ]


def check_sides(manifest: pd.DataFrame) -> None:
    """Raise CracksError unless both labels are on every side and no group holds most of a label or a slice."""
    assigned = manifest[manifest["split"].isin(SIDES)]
    for side in SIDES:
        labels = set(assigned.loc[assigned["split"] == side, "label"])
        if labels != {"crack", "intact"}:
            raise CracksError(
                f"The {side} side has {sorted(labels) or 'no images'}, but it needs both crack and intact. "
                "There are too few groups. Add images, change split.fractions or split.seed in params.yaml, or correct "
                "a photo_pattern that gives all images the same photo."
            )
    for column in ("label", "slice"):
        for value, rows in assigned.groupby(column):
            sizes = rows["group"].value_counts()
            if sizes.iloc[0] > max(1, MAX_SHARE_OF_A_GROUP * len(rows)):
                example = rows.loc[rows["group"] == sizes.index[0], "path"].iloc[0]
                raise CracksError(
                    f"One group holds {sizes.iloc[0]} of the {len(rows)} images of {column} {value!r}, for example "
                    f"{example}. Either they are near-duplicates, or photo_pattern gives many photos the same name: "
                    "correct it."
                )


def summarise(manifest: pd.DataFrame, pairs: pd.DataFrame, train_on: tuple[str, ...]) -> dict[str, int]:
    """Return counts of the data sets trained on (n_copies: those that have an earlier copy), and of all leaks."""
    contents = pd.Series(connected_groups(len(manifest), pairs[["first", "second"]].to_numpy()), manifest.index)
    trained = manifest[manifest["dataset"].isin(train_on)]
    return {
        "n_images": len(trained),
        "n_groups": trained["group"].nunique(),
        "n_copies": len(trained) - contents[trained.index].nunique(),
        "n_excluded": int((trained["split"] == EXCLUDED).sum()),
        "leaks": int(manifest["is_leak"].sum() + manifest["is_duplicate_across_sides"].sum()),
    }


def run(
    params: Params,
    *,
    datasets: Annotated[Path, "folder with a folder per data set"],
    validated: Annotated[Path, "folder of the results of validate"],
    manifest: Annotated[Path, "Parquet file to write"],
    summary: Annotated[Path, "JSON file to write"],
    context: Annotated[Path, "folder of the Data Context of Great Expectations"],
    report: Annotated[Path, "JSON file to write"],
    page: Annotated[Path, "HTML file to write"],
) -> None:
    """Write the manifest, its summary and its validation result; refuse a split that leaks."""
    names, train_on = list(params.datasets), params.split.train_on
    check_validated(validated, names)
    images = read_inventories(datasets, names)
    images = images.loc[arrival_order(images, train_on).sort_values(kind="stable").index].reset_index(drop=True)
    pictures = LabelledImages(images, datasets)
    pairs, doubtful = find_copies(images, pictures, params.split.copies)
    # those within a data set are on its own page
    dataset = images["dataset"].to_numpy()
    doubtful = doubtful[dataset[doubtful["first"]] != dataset[doubtful["second"]]]
    if unknown := {*chain(*params.split.copies.not_copies)} - {*images["sha256"].str[:CONTENT_ID_LENGTH]}:
        log.warning("split.copies.not_copies names images that no data set has: %s", ", ".join(sorted(unknown)))
    rows = build_manifest(images, pairs, params.split)
    check_sides(rows[rows["dataset"].isin(train_on)])  # external test sets may hold out a single photo
    checked = with_checks(rows, pairs, doubtful, train_on)
    checked["path"] = checked["dataset"] + "/" + checked["path"]  # two data sets may have equal paths
    rules = check(checked, split_rules(), "split", context)
    numbers = summarise(checked, pairs, train_on)
    sides = rows["split"].value_counts()
    headline = {f"{side} images": f"{n:,}" for side, n in sides.items()}
    words = ("images trained on", "groups of these", "copies among these", "excluded of these", "leaks")
    headline |= {name: f"{n:,}" for name, n in zip(words, numbers.values(), strict=True)}
    write_text(page, render_page(params, rules, headline, images, checked, pictures, doubtful))
    enforce("split", rules, headline, report=report, page=page)
    with replacing(manifest) as partial:
        rows.to_parquet(partial, index=False)
    write_json(summary, numbers)
    log.info("%s", ", ".join(f"{side}: {n}" for side, n in sides.items()))


def render_page(
    params: Params,
    rules: Sequence[Rule],
    headline: dict[str, str],
    inventory: pd.DataFrame,
    checked: pd.DataFrame,
    images: LabelledImages,
    doubtful: pd.DataFrame,
) -> str:
    """Return the page of the results of the rules, with pictures of the images that break them and of doubtful pairs.

    `inventory`, `checked` (the manifest) and `images` have the same rows.
    """
    rows = checked.assign(caption=checked["dataset"] + ", " + checked["split"])
    return render_contract(
        name="split",
        is_drawn=params.is_demo,
        facts=headline,
        rules=rules,
        violations=violations(rules, rows, images),
        inventory=inventory,
        doubtful=doubtful_groups(doubtful, checked, images),
        n_doubtful=len(doubtful),
    )


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
