"""Audit of a data set: near-duplicates, broken rules, and what a random split would leak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.data.contract import Rule, check, dataset_rules, files_table
from pipeline.data.contract_page import CaptionedImage, CopyGroup, render_contract
from pipeline.data.images import PackedImages
from pipeline.data.near_duplicates import connected_groups, find_copies
from pipeline.params import Copies, Dataset, Params

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

N_GROUPS_SHOWN = 30
N_TILES_SHOWN = 8  # of a group, and of the images that break a rule


@dataclass(frozen=True)
class Audit:
    """Results of the rules, headline figures, and an HTML page that shows both with pictures."""

    rules: list[Rule]
    facts: dict[str, str]
    page: str


def audit(
    name: str,
    dataset: Dataset,
    params: Params,
    images: PackedImages,
    quarantine: pd.DataFrame,
    *,
    expectations: Callable[..., list["Expectation"]] = dataset_rules,
    more_rules: Sequence[Rule] = (),
    context: Path | None = None,
) -> Audit:
    """Return the audit of an ingested data set or batch.

    Args:
        name: title of the page.
        dataset: its settings.
        params: limits of the contract and of near-duplicates.
        images: its images with the inventory.
        quarantine: columns batch, path, reason, is_image (of `ingest`).
        expectations: `dataset_rules`, or `image_rules` for a batch.
        more_rules: results of other rules to show.
        context: folder of the Data Context that keeps the results; None: they are not kept.
    """
    inventory = images.inventory
    copies = copies_within(inventory, params.split.copies)
    wanted = expectations(params.contract, photos_are_named=dataset.photo_pattern is not None)
    rules = [*check(files_table(inventory, quarantine, copies), wanted, name, context), *more_rules]
    headline = facts(inventory, quarantine, copies)
    page = render_contract(
        name=name,
        is_drawn=dataset.is_drawn,
        facts=headline,
        rules=rules,
        violations=violations(rules, images),
        copy_groups=copy_groups(copies, images),
        n_copy_groups=int((copies["group"].value_counts() > 1).sum()),
        quarantine=quarantine,
        inventory=inventory,
    )
    return Audit(rules, headline, page)


def copies_within(inventory: pd.DataFrame, limits: Copies) -> pd.DataFrame:
    """Return for each image `group` (a position), `is_copy` (not the first of its group), `is_conflict` and `kind`.

    `is_conflict` is true if the group has both labels. `kind` is the transformation from an earlier image of the group
    to this one, if the two are linked directly.
    """
    pairs = find_copies(inventory, limits)
    groups = pd.Series(connected_groups(len(inventory), pairs[["first", "second"]].to_numpy()), index=inventory.index)
    kinds = pairs.drop_duplicates("second").set_index("second")["kind"]
    is_copy = groups.to_numpy() != np.arange(len(inventory))
    n_labels = inventory["label"].groupby(groups).transform("nunique")
    return pd.DataFrame(
        {
            "group": groups,
            "is_copy": is_copy,
            "is_conflict": n_labels > 1,
            "kind": kinds.reindex(inventory.index).fillna(
                pd.Series(np.where(is_copy, "by a later copy", "the first"), inventory.index)
            ),
        }
    )


def copy_groups(copies: pd.DataFrame, images: PackedImages) -> list[CopyGroup]:
    """Return the groups to show: conflicts first, then the largest."""
    sizes = copies.groupby("group").agg(n=("is_copy", "size"), is_conflict=("is_conflict", "any"))
    shown = sizes[sizes["n"] > 1].sort_values(["is_conflict", "n"], ascending=False).head(N_GROUPS_SHOWN)
    groups = []
    for group, row in shown.iterrows():
        members = copies.index[copies["group"] == group]
        tiles = [tile(images, int(position), str(copies["kind"][position])) for position in members[:N_TILES_SHOWN]]
        groups.append(CopyGroup(tuple(tiles), n_images=int(row["n"]), is_conflict=bool(row["is_conflict"])))
    return groups


def tile(images: PackedImages, position: int, caption: str) -> CaptionedImage:
    """Return the picture of an image of the inventory."""
    row = images.inventory.iloc[position]
    return CaptionedImage(str(row["path"]), str(row["label"]), caption, images.pixels(position))


def violations(rules: Sequence[Rule], images: PackedImages) -> dict[str, list[CaptionedImage]]:
    """Return pictures of the first images that break each rule, if they are readable; by text of the rule."""
    positions = {str(path): position for position, path in enumerate(images.inventory["path"])}
    return {
        rule.text: [tile(images, positions[path], "") for path in rule.paths[:N_TILES_SHOWN] if path in positions]
        for rule in rules
        if not rule.success
    }


def facts(inventory: pd.DataFrame, quarantine: pd.DataFrame, copies: pd.DataFrame) -> dict[str, str]:
    """Return the headline figures of an audit: counts, and the share of test images that a random split would leak."""
    sizes = copies["group"].value_counts()
    # The k - 1 copies of a test image are all in the test set of one fifth too with probability 0.2 ** (k - 1).
    leaked = float((sizes * (1 - 0.2 ** (sizes - 1))).sum() / len(inventory))
    kinds = copies.loc[copies["is_copy"], "kind"].value_counts()
    distinct = inventory.groupby("label")["sha256"].nunique()
    groups = copies["group"].groupby(inventory["label"]).nunique()
    return {
        "images": f"{len(inventory):,}",
        **{f"labelled {label}": f"{n:,}" for label, n in inventory["label"].value_counts().sort_index().items()},
        **{f"{label}, distinct by bytes": f"{n:,}" for label, n in distinct.items()},
        **{f"{label}, distinct by content": f"{n:,}" for label, n in groups.items()},
        **{f"copies: {kind}": f"{n:,}" for kind, n in kinds.items()},
        "images with a copy of the other label": f"{int(copies['is_conflict'].sum()):,}",
        "files in quarantine": f"{len(quarantine):,}",
        "test images a random 80/20 split would leak": f"{100 * leaked:.1f} %",
    }
