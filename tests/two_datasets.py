"""What the tests of training share: two small data sets of drawn tiles, and params that train on both."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import yaml

from pipeline.data.images import IMAGES_FILE, INVENTORY_FILE
from pipeline.registry.runs import SECTIONS_OUTSIDE_REPRO

SHIPPED = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
PARAMS = {
    "datasets": {"ours": {"source": "ours"}, "theirs": {"source": "theirs"}},
    "ingest": {
        "max_files": 99,
        "max_total_mb": 99,
        "max_file_mb": 99,
        "max_expansion": 99,
        "max_image_megapixels": 9,
    },
    "contract": {
        "min_images_per_label": 1,
        "min_decodable_share": 1,
        "min_minority_share": 0,
        "min_size_px": 32,
        "max_size_px": 99,
        "max_copies_share": 1,
        "min_share_in_range": 1,
        "ranges": {},
    },
    "split": {
        "train_on": ["ours", "theirs"],
        "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "seed": 0,
        "copies": {"min_correlation": 1},
    },
    "backbones": {
        "small": {"architecture": "mobilenet-v2", "image_size_px": 32},
        "other": {"architecture": "efficientnet-lite0", "image_size_px": 64},
    },
    "candidates": {
        "probe": {
            "kind": "probe",
            "backbone": "small",
            "n_components": 8,
            "l2_penalties": [0.1, 0.01],
            "mosaics": {"of": ["ours"], "cells_a_side": [2, 3], "n_images": 12},
            "seed": 0,
        },
        "finetune": {
            "kind": "finetune",
            "backbone": "small",
            "batch_size": 4,
            "dropout": 0.2,
            "augmentation": {"flips": "horizontal", "max_rotation_turns": 0.1},
            "head": {"optimizer": "adam", "learning_rate": 0.01, "max_epochs": 1, "patience_epochs": None},
            "tuning": {"optimizer": "adam", "learning_rate": 0.001, "max_epochs": 2, "patience_epochs": 2},
            "unfreeze_from": "block_16_expand",
            "cached_augmentations": None,
            "seed": 0,
        },
    },
    "embed": {"dask_address": None},
    "select": {"external_weight": 0.5},
    "decide": {
        "missed_crack_cost": 2,
        "false_alarm_cost": 1,
        "review_budget": 0,
    },
    **{name: SHIPPED[name] for name in sorted(SECTIONS_OUTSIDE_REPRO | {"register"})},
}


def write_dataset(folder, contents, sizes):
    """Write a data set as `ingest` leaves it."""
    folder.mkdir(parents=True)
    (folder / IMAGES_FILE).write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    offsets = np.cumsum([0, *lengths[:-1]])
    table = pd.DataFrame(sizes, columns=["height", "width"]).assign(offset=offsets, n_bytes=lengths)
    table.to_parquet(folder / INVENTORY_FILE)


def write_two_datasets(folder, draw_tile, encode):
    """Write "ours" and "theirs", tiles of two sizes, cracked and intact in turn, and their manifest in no order."""
    rows = []
    for name, n, first_seed in (("ours", 24, 0), ("theirs", 12, 1000)):
        sizes = [(40, 40) if row % 3 else (32, 32) for row in range(n)]
        tiles = [draw_tile(first_seed + row, cracked=row % 2 == 0, size_px=size[0]) for row, size in enumerate(sizes)]
        write_dataset(folder / "datasets" / name, [encode(tile) for tile in tiles], sizes)
        splits = ["train", "train", "train", "train", "validation", "validation", "train", "train", "test", "test"]
        rows += [
            {
                "dataset": name,
                "row": row,
                "label": "intact" if row % 2 else "crack",
                "group": f"{name}-{row}",
                "split": splits[row % len(splits)],
            }
            for row in range(n)
        ]
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_parquet(folder / "manifest.parquet")
    return SimpleNamespace(datasets=folder / "datasets", manifest=folder / "manifest.parquet")
