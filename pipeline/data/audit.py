"""What is in a data set: its copies, what breaks its contract, and what a random split would leak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.data.contract import Rule, check, dataset_rules, files_table
from pipeline.data.contract_page import CopyGroup, Tile, render_contract
from pipeline.data.images import PackedImages
from pipeline.data.near_duplicates import connected_groups, find_copies
from pipeline.params import Copies, Dataset, Params

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

N_GROUPS_SHOWN = 30
N_TILES_SHOWN = 8  # of a group, and of the offenders of a rule


@dataclass(frozen=True)
class Audit:
    """What came of a data set's rules, its headline in words, and the page that shows both with pictures."""

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
) -> Audit:
    """Audit a data set that `ingest` has read, or a batch.

    Args:
        name: how the page calls it.
        dataset: where it came from and how its names are read.
        params: the limits of the contract and what counts as a copy.
        images: its images with the inventory.
        quarantine: columns batch, path, reason, is_image (of `ingest`).
        expectations: `dataset_rules`, or `image_rules` for what a batch must meet by itself.
        more_rules: what came of other rules, to show beside them.
    """
    inventory = images.inventory
    copies = copies_within(inventory, params.split.copies)
    wanted = expectations(params.contract, photos_are_named=dataset.photo_pattern is not None)
    rules = [*check(files_table(inventory, quarantine, copies), wanted), *more_rules]
    headline = facts(inventory, quarantine, copies)
    page = render_contract(
        name=name,
        is_drawn=dataset.is_drawn,
        facts=headline,
        rules=rules,
        offenders=offenders(rules, images),
        copy_groups=copy_groups(copies, images),
        n_copy_groups=int((copies["group"].value_counts() > 1).sum()),
        quarantine=quarantine,
        inventory=inventory,
    )
    return Audit(rules, headline, page)


def copies_within(inventory: pd.DataFrame, limits: Copies) -> pd.DataFrame:
    """Return for each image its `group` (a position), `is_copy` (not the first of its group) and `is_conflict`.

    `kind` says how an image was made from an earlier one of its group, if it is linked with one directly.
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
        tiles = [tile(images, int(place), str(copies["kind"][place])) for place in members[:N_TILES_SHOWN]]
        groups.append(CopyGroup(tuple(tiles), n_images=int(row["n"]), is_conflict=bool(row["is_conflict"])))
    return groups


def tile(images: PackedImages, place: int, caption: str) -> Tile:
    """Return the picture of one image of the inventory."""
    row = images.inventory.iloc[place]
    return Tile(str(row["path"]), str(row["label"]), caption, images.pixels(place))


def offenders(rules: Sequence[Rule], images: PackedImages) -> dict[str, list[Tile]]:
    """Return pictures of the first offenders of each rule that is not met, as far as they can be shown."""
    places = {str(path): place for place, path in enumerate(images.inventory["path"])}
    return {
        rule.text: [tile(images, places[path], "") for path in rule.paths[:N_TILES_SHOWN] if path in places]
        for rule in rules
        if not rule.success
    }


def facts(inventory: pd.DataFrame, quarantine: pd.DataFrame, copies: pd.DataFrame) -> dict[str, str]:
    """Return the headline of an audit in words: counts, and what a random split would leak."""
    sizes = copies["group"].value_counts()
    # An image of a group of k lands in a test set of one fifth with none of its copies in training at 0.2 ** (k - 1).
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
        "test images a random 80/20 split would leak": f"{leaked:.1%}",
    }
