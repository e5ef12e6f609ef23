"""What the tests of audit, contract and split share: small data sets of drawn concrete, ingested."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import yaml
from PIL import Image, ImageOps

from pipeline.data import dataset_reader
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.demo import Recipe, draw
from pipeline.params import Dataset, Params

ROOT = Path(__file__).parents[1]


def in_process(mp_context):
    """A thread in place of a pool of processes, which is faster for a few images."""
    return ThreadPoolExecutor(1)


def drawn_files(n=12, seed=7, mirrored=0):
    """Drawn images by path: n of each label, 64 px, and mirrored copies of the first ones; none is broken."""
    recipe = Recipe(
        seed=seed,
        size_px=64,
        images_per_class=n,
        mirrored_per_class=mirrored,
        jpeg_quality=90,
        crack_width_px=(1, 4),
        crack_darkness=(0.5, 0.9),
        look_alikes_crack=0.5,
        look_alikes_intact=0.5,
    )
    return {path: content for path, content in draw(recipe) if int(path[-8:-4]) <= n + mirrored}


def changed(content, change=ImageOps.mirror, quality=90):
    """The bytes of an image that was changed and saved again."""
    buffer = io.BytesIO()
    change(Image.open(io.BytesIO(content))).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def params_for(names, *, train_on=None, contract=None, photo_pattern=None, **split):
    """The params of params.yaml with other data sets and limits that few images can meet."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["datasets"] = {name: {"source": f"{name}.zip", "photo_pattern": photo_pattern} for name in names}
    params["contract"] |= {"min_images_per_label": 4} | (contract or {})
    params["split"] |= {"train_on": train_on or list(names)} | split
    return Params.model_validate(params)


def write_files(files, folder):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def ingest_files(files, folder, photo_pattern=None):
    """Ingest the files into folder/dataset, in this process; return that."""
    source = write_files(files, folder / "source")
    with mock.patch.object(dataset_reader, "ProcessPoolExecutor", in_process):
        pack_dataset(Dataset(source=source, photo_pattern=photo_pattern), params_for(["a"]).ingest, folder / "dataset")
    return folder / "dataset"


def pairs_of(*pairs):
    """Copies, as pairs of positions."""
    return pd.DataFrame(pairs, columns=["first", "second"], dtype=np.int64)


NO_PAIRS = pairs_of()


def wall_with_a_hole(seed, *, hole=110, shared=0.0, size_px=128):
    """A drawn wall as PNG: grain, of which a part is `shared`, and a dark hole that is always at the same place."""
    common, own = (np.random.default_rng(number).normal(0, 8, (size_px, size_px)) for number in (0, 1000 + seed))
    y, x = np.mgrid[:size_px, :size_px] / size_px
    edge = 0.01 * np.cos(5 * np.arctan2(y - 0.35, x - 0.63))
    depth = 1 / (1 + np.exp((np.hypot(y - 0.35, x - 0.63) + edge - 0.06) / 0.008))
    grey = 150 + np.sqrt(1 - shared**2) * own + shared * common - hole * depth
    buffer = io.BytesIO()
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
