"""What the tests of audit, contract and split share: small data sets of drawn concrete, ingested."""

import io
from multiprocessing import dummy
from pathlib import Path
from types import SimpleNamespace
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
# In place of multiprocessing: no pool of processes, which is faster for a few images.
IN_PROCESS = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=lambda _: dummy.Pool(1)))


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
    with mock.patch.object(dataset_reader, "multiprocessing", IN_PROCESS):
        pack_dataset(Dataset(source=source, photo_pattern=photo_pattern), params_for(["a"]).ingest, folder / "dataset")
    return folder / "dataset"


def pairs_of(*pairs):
    """Copies, as pairs of positions."""
    return pd.DataFrame(pairs, columns=["first", "second"], dtype=np.int64)


NO_PAIRS = pairs_of()
