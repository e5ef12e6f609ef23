"""Compute the features of all training and validation images with a frozen backbone.

The images are the train and the validation side of --manifest; pipeline/training/features.py defines the format.
Runs on this machine, or on the Dask cluster at `embed.dask_address`. Finished shards are kept in --checkpoints until
the stage has finished, so that an interrupted run can be resumed.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.data.images import INVENTORY_FILE, EncodedImages, ImageSubset, PackedImages, Sizes
from pipeline.data.training_images import RowNumbers, Sides, training_rows
from pipeline.files import replacing_folder
from pipeline.inference.dask_cluster import compute_on_cluster
from pipeline.params import Backbone, Params, named
from pipeline.stage import run_main, stage_main
from pipeline.training.embedder import embedder_of, has_shard, load_shard, save_shard, shards_of
from pipeline.training.features import Features, features_file, rows_file

Task = tuple[list[bytes], Sizes, bool]  # files of a shard, their sizes, whether they are of the train side


def unfinished_folder(checkpoints: Path, backbone: Backbone, dataset: Path, sides: Sides) -> Path:
    """Return the folder of finished shards, which depends on backbone, content of the data set and chosen rows."""
    digest = hashlib.sha256(backbone.model_dump_json().encode())
    digest.update((dataset / INVENTORY_FILE).read_bytes())
    for rows in sides:
        digest.update(np.array(len(rows)).tobytes() + rows.tobytes())
    return checkpoints / digest.hexdigest()[:16]


class Shard(NamedTuple):
    """Positions of rows that are embedded together, and whether they are of the train side."""

    positions: range
    for_training: bool


def shards_by_side(sides: Sides) -> list[Shard]:
    """Return the positions of `sides.rows` in shards, each with images of one side only."""
    n_train = len(sides.train)
    train = [Shard(positions, for_training=True) for positions in shards_of(n_train)]
    others = (range(n_train + shard.start, n_train + shard.stop) for shard in shards_of(len(sides.validation)))
    return train + [Shard(positions, for_training=False) for positions in others]


def embed_files(backbone: Backbone, task: Task) -> Features:
    """Return the features of image files, float16, (n, n_features)."""
    contents, sizes, for_training = task
    return embedder_of(backbone).features(EncodedImages(contents, sizes), for_training=for_training)


def computed_locally(
    backbone: Backbone, images: PackedImages, rows: RowNumbers, shards: list[Shard]
) -> Iterator[tuple[Shard, Features]]:
    """Yield each shard of `rows` with its features, computed on this machine."""
    for shard in shards:
        chosen = ImageSubset(images, rows[shard.positions])
        yield shard, embedder_of(backbone).features(chosen, for_training=shard.for_training)


def computed_by_dask(
    address: str, backbone: Backbone, images: PackedImages, rows: RowNumbers, shards: list[Shard]
) -> Iterator[tuple[Shard, Features]]:
    """Yield each shard of `rows` with its features, computed by the Dask cluster at `address`, in order of completion.

    The files are sent with the tasks.

    Raises:
        UnavailableError: no scheduler answers at `address`, or it has no worker.
    """

    def task_of(shard: Shard) -> Task:
        chosen = rows[shard.positions]
        return [images.content(row) for row in chosen], images.sizes[chosen], shard.for_training

    tasks = ((shard, task_of(shard)) for shard in shards)
    yield from compute_on_cluster(
        address, embed_files, backbone, tasks, local_hint="set embed.dask_address in params.yaml to null"
    )


def embed_dataset(
    backbone: Backbone,
    dataset: Path,
    sides: Sides,
    unfinished: Path,
    out: Path,
    dask_address: str | None = None,
) -> None:
    """Write the features of a data set's training and validation images into the folder `out`.

    Shards that are in the folder `unfinished` are not computed again.
    """
    images, rows = PackedImages(dataset), sides.rows
    shards = shards_by_side(sides)
    missing = [shard for shard in shards if not has_shard(unfinished, shard.positions)]
    if dask_address is None:
        computed = computed_locally(backbone, images, rows, missing)
    else:
        computed = computed_by_dask(dask_address, backbone, images, rows, missing)
    with tqdm(total=len(rows), desc=f"embedding {dataset.name}", unit=" images", disable=None) as bar:
        bar.update(len(rows) - sum(len(shard.positions) for shard in missing))
        for shard, features in computed:
            save_shard(unfinished, shard.positions, features)
            bar.update(len(shard.positions))
    first = load_shard(unfinished, shards[0].positions)
    shape = len(rows), first.shape[1]
    table = np.lib.format.open_memmap(features_file(out, dataset.name), "w+", np.float16, shape)
    for positions, _ in shards:
        table[positions.start : positions.stop] = load_shard(unfinished, positions)
    table.flush()
    np.save(rows_file(out, dataset.name), rows)


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
