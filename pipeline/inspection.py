"""Hold a new batch against the contract before it joins its data set: by itself, and together with what is there."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pipeline.audit import copies_within, copy_groups, facts, offenders, unreadable
from pipeline.contract import check, dataset_rules, files_table, image_rules, in_words
from pipeline.contract_page import Rule, render_contract
from pipeline.dataset_reader import pack_dataset
from pipeline.images import INVENTORY_FILE, PackedImages, read_quarantine
from pipeline.params import Params
from pipeline.reviews import supersede


@dataclass(frozen=True)
class Inspection:
    """How many images a batch has, what it breaks in words (empty: nothing), and the page with pictures."""

    n_images: int
    broken: str
    page: str


def inspect(archive: Path, name: str, params: Params, *, known: Path, scratch: Path) -> Inspection:
    """Read a batch into `scratch` and hold it against the contract.

    By itself it must meet the rules on single images; together with its data set, all rules.

    Args:
        archive: the batch.
        name: of the data set that it would join.
        params: with the limits.
        known: folder into which `ingest` has read that data set; it may be missing, then only the batch itself counts.
        scratch: folder to write.

    Raises:
        CracksError: the archive cannot be read, or holds no image.
    """
    dataset = params.datasets[name].model_copy(update={"source": archive})
    pack_dataset(dataset, params.ingest, scratch)
    images, quarantine = PackedImages(scratch), read_quarantine(scratch)
    inventory = images.inventory
    copies = copies_within(inventory, params.split.copies)
    named = dataset.photo_pattern is not None
    files = files_table(inventory, unreadable(quarantine), copies)
    rules = check(files, image_rules(params.contract, photos_are_named=named))
    if (known / INVENTORY_FILE).exists():
        rules += _rules_together(name, params, inventory, quarantine, known, photos_are_named=named)
    page = render_contract(
        name=archive.name,
        is_drawn=False,
        facts=facts(inventory, quarantine, copies),
        rules=rules,
        offenders=offenders(rules, images),
        copy_groups=copy_groups(copies, images),
        n_copy_groups=int((copies["group"].value_counts() > 1).sum()),
        quarantine=quarantine,
        inventory=inventory,
    )
    broken = [rule for rule in rules if not rule.success and rule.severity == "fail"]
    words = f"it breaks the contract:\n{in_words(broken)}" if broken else ""
    return Inspection(len(inventory), words, page)


def _rules_together(
    name: str,
    params: Params,
    inventory: pd.DataFrame,
    quarantine: pd.DataFrame,
    known: Path,
    *,
    photos_are_named: bool,
) -> list[Rule]:
    """Return what comes of the data set's rules once the batch has joined it; older paths have its name in front."""
    older = pd.read_parquet(known / INVENTORY_FILE)
    older["path"] = name + "/" + older["batch"] + "/" + older["path"]
    images = supersede(pd.concat([older, inventory], ignore_index=True))
    not_used = pd.concat([read_quarantine(known), quarantine], ignore_index=True)
    files = files_table(images, unreadable(not_used), copies_within(images, params.split.copies))
    rules = check(files, dataset_rules(params.contract, photos_are_named=photos_are_named))
    return [replace(rule, text=f"together with {name}: {rule.text}") for rule in rules]
