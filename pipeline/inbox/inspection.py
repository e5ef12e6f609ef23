"""Check a new batch against the contract, on its own and combined with its data set."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.data.audit import Audit, audit, copies_within
from pipeline.data.contract import Rule, check, dataset_rules, files_table, image_rules
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.images import INVENTORY_FILE, LabelledImages, PackedImages, read_quarantine
from pipeline.data.near_duplicates import find_copies
from pipeline.data.reviews import apply_reviews
from pipeline.params import Params


def inspect(archive: Path, name: str, params: Params, *, known: Path, scratch: Path) -> tuple[int, Audit]:
    """Read a batch for the data set `name` into `scratch`; return its number of images, and its audit.

    On its own, the batch must meet the rules for single images; combined with the ingested data set in the folder
    `known`, if there is one, all rules. Raises CracksError if the archive cannot be read, or holds no image.
    """
    # labels are corrected once the images have arrived
    dataset = params.datasets[name].model_copy(update={"source": archive, "corrected_labels": {}})
    pack_dataset(dataset, params.ingest, scratch)
    images, quarantine = PackedImages(scratch), read_quarantine(scratch)
    is_ingested = (known / INVENTORY_FILE).exists()
    together = _combined_rules(name, params, scratch, quarantine, known) if is_ingested else []
    found = audit(archive.name, dataset, params, images, quarantine, expectations=image_rules, more_rules=together)
    return len(images.inventory), found


def _combined_rules(name: str, params: Params, scratch: Path, quarantine: pd.DataFrame, known: Path) -> list[Rule]:
    """Check the rules for data sets on batch and data set combined; older paths are prefixed with its name."""
    older, new = (pd.read_parquet(folder / INVENTORY_FILE) for folder in (known, scratch))
    older["path"] = name + "/" + older["batch"] + "/" + older["path"]
    both = pd.concat({str(known): older, str(scratch): new}, names=["dataset", "row"]).reset_index()
    images = apply_reviews(both)
    pairs, doubtful = find_copies(images.drop(columns="dataset"), LabelledImages(images, Path()), params.split.copies)
    not_used = pd.concat([read_quarantine(known), quarantine], ignore_index=True)
    files = files_table(images, not_used, copies_within(images, pairs, doubtful))
    photos_are_named = params.datasets[name].photo_pattern is not None
    rules = check(files, dataset_rules(params.contract, photos_are_named=photos_are_named))
    return [replace(rule, text=f"together with {name}: {rule.text}") for rule in rules]
