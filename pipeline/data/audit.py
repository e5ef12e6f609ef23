"""Audit of a data set: near-duplicates, broken rules, and what a random split would leak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.data.contract import Rule, check, dataset_rules, files_table, none_of
from pipeline.data.contract_page import (
    CopyGroup,
    SuspectLabels,
    captioned,
    doubtful_groups,
    render_contract,
    violations,
)
from pipeline.data.images import PackedImages
from pipeline.data.near_duplicates import connected_groups, find_copies
from pipeline.params import CONTENT_ID_LENGTH, Dataset, Params

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

ALL_MASKS_FIT = "every image has a mask that fits, and every mask an image"
N_GROUPS_SHOWN = 30
N_TILES_SHOWN = 8  # of a group


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
    quarantine: pd.DataFrame,  # of `ingest`
    *,
    expectations: Callable[..., list["Expectation"]] = dataset_rules,  # `image_rules` for a batch
    more_rules: Sequence[Rule] = (),  # results of other rules to show
    judge_labels: Callable[[pd.DataFrame], SuspectLabels] | None = None,  # pairs of copies -> labels to show
    context: Path | None = None,  # folder of the Data Context that keeps the results; None: they are not kept
) -> Audit:
    """Return the audit of an ingested data set or batch, with `name` as the title of the page."""
    inventory = images.inventory
    pairs, doubtful = find_copies(inventory, images, params.split.copies)
    copies = copies_within(inventory, pairs, doubtful)
    wanted = expectations(params.contract, photos_are_named=dataset.photo_pattern is not None)
    wanted += [none_of("is_misfit", ALL_MASKS_FIT)] if dataset.masks else []
    suite = name if context else "contract"  # an archive may have any name, a data set only a simple one
    rules = [*check(files_table(inventory, quarantine, copies), wanted, suite, context), *more_rules]
    headline = facts(inventory, quarantine, copies)
    page = render_contract(
        name=name,
        is_drawn=dataset.is_drawn,
        facts=headline,
        rules=rules,
        violations=violations(rules, inventory.assign(caption=""), images),
        copy_groups=copy_groups(copies, pairs, images),
        n_copy_groups=int((copies["group"].value_counts() > 1).sum()),
        doubtful=doubtful_groups(doubtful, inventory, images),
        n_doubtful=len(doubtful),
        suspects=judge_labels(pairs) if judge_labels else None,
        quarantine=quarantine,
        inventory=inventory,
    )
    return Audit(rules, headline, page)


def copies_within(inventory: pd.DataFrame, pairs: pd.DataFrame, doubtful: pd.DataFrame) -> pd.DataFrame:
    """Return what is known of each image of an inventory from the two results of `find_copies`.

    Columns are `group` (a position), `is_copy` (not the first of its group), `is_conflict` (its group has both labels),
    `is_doubtful` (it is in a doubtful pair) and `kind`, the transformation from an earlier image of the group to this
    one, if the two are linked directly.
    """
    groups = pd.Series(connected_groups(len(inventory), pairs[["first", "second"]].to_numpy()), index=inventory.index)
    is_copy = groups.to_numpy() != np.arange(len(inventory))
    n_labels = inventory["label"].groupby(groups).transform("nunique")
    kinds = pairs.drop_duplicates("second").set_index("second")["kind"].reindex(inventory.index)
    others = pd.Series(np.where(is_copy, "by a later copy", "the first"), inventory.index)
    is_doubtful = inventory.index.isin(doubtful[["first", "second"]].to_numpy().ravel())
    columns = {"group": groups, "is_copy": is_copy, "is_conflict": n_labels > 1, "is_doubtful": is_doubtful}
    return pd.DataFrame(columns | {"kind": kinds.fillna(others)})


def copy_groups(copies: pd.DataFrame, pairs: pd.DataFrame, images: PackedImages) -> list[CopyGroup]:
    """Return the groups to show: conflicts first, then the largest; of each, some images of both labels."""
    label, ids = images.inventory["label"].to_numpy(), images.inventory["sha256"].str[:CONTENT_ID_LENGTH].to_numpy()
    crossing = pairs[(label[pairs["first"]] != label[pairs["second"]]) & (pairs["kind"] != "identical")]
    sizes = copies.groupby("group").agg(n=("is_copy", "size"), is_conflict=("is_conflict", "any"))
    shown = sizes[sizes["n"] > 1].sort_values(["is_conflict", "n"], ascending=False).head(N_GROUPS_SHOWN)
    groups = []
    for group, row in shown.iterrows():
        members = images.inventory[copies["group"] == group].assign(caption=copies["kind"])
        # the labels alternate, so that a conflict is visible
        members = members.loc[members.groupby("label").cumcount().sort_values(kind="stable").index[:N_TILES_SHOWN]]
        tiles = tuple(captioned(members.loc[at], images.pixels(int(at))) for at in members.index.to_numpy())
        links = crossing.loc[copies["group"].to_numpy()[crossing["first"]] == group, ["first", "second"]].to_numpy()
        groups.append(CopyGroup(tiles, int(row["n"]), bool(row["is_conflict"]), tuple(map(tuple, ids[links].tolist()))))
    return groups


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
        "files that cannot be read": f"{int((~quarantine['is_image'] & ~quarantine['is_left_out']).sum()):,}",
        "images and files left out": f"{int((quarantine['is_image'] | quarantine['is_left_out']).sum()):,}",
        "test images a random 80/20 split would leak": f"{100 * leaked:.1f} %",
    }
