"""Split all images into train, validation and test so that no near-duplicates and no photo are on two sides.

Near-duplicates and tiles of one photo form a group, which is assigned to one side; later batches never change an
earlier assignment (group_split.py). Data sets that are not trained on are external test sets: all their images are
tested on, except photos that params.yaml holds out for validation. Images of review batches go to train, or are
excluded if their group is on another side. Images on whose label reviewers disagree are excluded.

Writes --manifest, a row per image: path, dataset, row (in the data set's inventory), batch, label, slice, photo,
sha256, group, split (train, validation, test, external or excluded); --summary; and the validation result of the split
as --report and --page. Ends with exit code 3 if the split breaks its contract.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd

from pipeline.data.contract import Rule, check, enforce
from pipeline.data.contract_page import render_contract, violations
from pipeline.data.group_split import arrival_order, build_manifest
from pipeline.data.images import INVENTORY_FILE, LabelledImages
from pipeline.data.near_duplicates import find_copies
from pipeline.data.split_contract import check_sides, split_rules, summarise, with_checks
from pipeline.errors import RefusedError
from pipeline.files import replacing, write_json, write_text
from pipeline.params import Params
from pipeline.stage import run_main, stage_main

log = logging.getLogger(__name__)


def read_inventories(datasets: Path, names: list[str]) -> pd.DataFrame:
    """Return the concatenated inventories of the named data sets, with columns dataset and row."""
    parts = []
    for name in names:
        part = pd.read_parquet(datasets / name / INVENTORY_FILE)
        parts.append(part.assign(dataset=name, row=np.arange(len(part))))
    return pd.concat(parts, ignore_index=True)


def check_validated(validated: Path, names: list[str]) -> None:
    """Raise RefusedError unless every named data set has passed its contract."""
    for name in names:
        result = validated / f"{name}.json"
        if not result.exists() or not json.loads(result.read_text())["success"]:
            raise RefusedError(
                f"Data set {name} has not passed its contract. Run `dvc repro validate@{name}` to see why."
            )


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
    pairs = find_copies(images, params.split.copies)
    rows = build_manifest(images, pairs, params.split)
    check_sides(rows[rows["dataset"].isin(train_on)])  # external test sets may hold out a single photo
    checked = with_checks(rows, pairs, train_on)
    checked["path"] = checked["dataset"] + "/" + checked["path"]  # two data sets may have equal paths
    rules = check(checked, split_rules(), "split", context)
    numbers = summarise(checked, train_on)
    sides = rows["split"].value_counts()
    headline = {f"{side} images": f"{n:,}" for side, n in sides.items()}
    headline |= {name.removeprefix("n_"): f"{n:,}" for name, n in numbers.items()}
    write_text(page, render_page(params, rules, headline, images, checked, datasets))
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
    datasets: Path,
) -> str:
    """Return the page of the results of the rules, with pictures of the images that break them."""
    shown = checked[checked["path"].isin({path for rule in rules if not rule.success for path in rule.paths})]
    images = LabelledImages(shown, datasets)
    rows = images.rows.assign(caption=images.rows["dataset"] + ", " + images.rows["split"])
    return render_contract(
        name="split",
        is_drawn=params.is_demo,
        facts=headline,
        rules=rules,
        violations=violations(rules, rows, images),
        inventory=inventory,
    )


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
