"""Compute the features of all training and validation images with a frozen backbone.

The images are the train and the validation side of --manifest; pipeline/training/features.py defines the format.
Runs on this machine, or on the Dask cluster at `embed.dask_address`. Finished shards are kept in --checkpoints until
the stage has finished, so that an interrupted run can be resumed.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.data.images import INVENTORY_FILE, EncodedImages, PackedImages, Sizes
from pipeline.data.training_images import Sides, training_rows
from pipeline.files import name_by_hash, replacing_folder
from pipeline.inference.dask_cluster import compute_on_cluster
from pipeline.params import Backbone, Params, named
from pipeline.stage import run_main, stage_main
from pipeline.training.embedder import Shards, embedder_of
from pipeline.training.features import Features, features_file, rows_file

Task = tuple[list[bytes], Sizes, bool]  # files of a shard, their sizes, whether they are of the train side


def unfinished_folder(checkpoints: Path, backbone: Backbone, dataset: Path, sides: Sides) -> Path:
    """Return the folder of finished shards, which depends on backbone, content of the data set and chosen rows."""
    chosen = (np.append(len(rows), rows).tobytes() for rows in sides)
    return checkpoints / name_by_hash(backbone.model_dump_json(), (dataset / INVENTORY_FILE).read_bytes(), *chosen)


def embed_files(backbone: Backbone, task: Task) -> Features:
    """Return the features of image files, float16, (n, n_features)."""
    contents, sizes, for_training = task
    return embedder_of(backbone).features(EncodedImages(contents, sizes), for_training=for_training)


def embed_dataset(
    backbone: Backbone, dataset: Path, sides: Sides, unfinished: Path, out: Path, dask_address: str | None
) -> None:
    """Write the features of a data set's training and validation images into the folder `out`.

    Shards that the folder `unfinished` lacks are computed here, or on the Dask cluster at `dask_address`, to which the
    files are sent. Raises `UnavailableError` if no scheduler answers there, or it has no worker.
    """
    images = PackedImages(dataset)
    parts = [(Shards(unfinished / side, len(rows)), rows, side == "train") for side, rows in sides._asdict().items()]
    n_missing = sum(len(shard) for shards, *_ in parts for shard in shards.missing())
    tasks = (
        ((shards, shard), ([images.content(row) for row in rows[shard]], images.sizes[rows[shard]], for_training))
        for shards, rows, for_training in parts
        for shard in shards.missing()
    )
    computed: Iterator[tuple[tuple[Shards, range], Features]]
    if dask_address is None:
        computed = ((place, embed_files(backbone, task)) for place, task in tasks)
    else:
        hint = "set embed.dask_address in params.yaml to null"
        computed = compute_on_cluster(dask_address, embed_files, backbone, tasks, local_hint=hint)
    n_rows, label = len(sides.rows), f"embedding {dataset.name}"
    with tqdm(total=n_rows, initial=n_rows - n_missing, desc=label, unit=" images", disable=None) as bar:
        for (shards, shard), features in computed:
            shards.save(shard, features)
            bar.update(len(shard))
    arrays = [array for shards, *_ in parts for array in shards.arrays()]
    shape = n_rows, arrays[0].shape[1]
    table = np.lib.format.open_memmap(features_file(out, dataset.name), "w+", np.float16, shape)
    np.concatenate(arrays, out=table)
    table.flush()
    np.save(rows_file(out, dataset.name), sides.rows)


def run(
    backbone: Backbone,
    manifest: pd.DataFrame,
    datasets: Path,
    checkpoints: Path,
    out: Path,
    dask_address: str | None = None,
) -> None:
    """Write the features of the training and validation images of a manifest into the folder `out`."""
    with replacing_folder(out) as folder:
        for name, sides in training_rows(manifest).items():
            unfinished = unfinished_folder(checkpoints, backbone, datasets / name, sides)
            embed_dataset(backbone, datasets / name, sides, unfinished, folder, dask_address)
    shutil.rmtree(checkpoints, ignore_errors=True)


@stage_main
def main(
    params: Params,
    *,
    backbone: Annotated[str, "its name in params.yaml"],
    datasets: Annotated[Path, "folder with a folder per data set"],
    manifest: Annotated[Path, "Parquet file of `split`"],
    checkpoints: Annotated[Path, "folder for unfinished work"],
    out: Annotated[Path, "folder to write"],
) -> None:
    """Write the features of the images in the manifest."""
    settings = named(params.backbones, backbone, "backbone")
    run(settings, pd.read_parquet(manifest), datasets, checkpoints, out, params.embed.dask_address)


if __name__ == "__main__":
    run_main(main)
