"""Send every image that training reads once through a frozen backbone and keep its features (pipeline/features.py).

These are the train and the validation side of --manifest. Runs on this machine, or over the Dask cluster at
`embed.dask_address`; finished shards are kept in --checkpoints until the end.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.cluster import computed_on_cluster
from pipeline.features import LearnedFrom, features_file, rows_file, rows_learned_from
from pipeline.files import replacing_folder
from pipeline.images import INVENTORY_FILE, Chosen, EncodedImages, PackedImages, Sizes
from pipeline.inference import Features, embedder_of, has_shard, keep_shard, kept_shard, shards_of
from pipeline.params import Backbone, load_params, named
from pipeline.stage import run_main, stage_parser

Task = tuple[list[bytes], Sizes, bool]  # the files of a shard, their sizes, and whether they are of the train side


def unfinished_folder(checkpoints: Path, backbone: Backbone, dataset: Path, learned_from: LearnedFrom) -> Path:
    """Return the folder of unfinished work, another one for each backbone, content of a data set and choice of rows."""
    digest = hashlib.sha256(backbone.model_dump_json().encode())
    digest.update((dataset / INVENTORY_FILE).read_bytes())
    for rows in learned_from:
        digest.update(np.array(len(rows)).tobytes() + rows.tobytes())
    return checkpoints / digest.hexdigest()[:16]


def shards_by_side(learned_from: LearnedFrom) -> list[range]:
    """Return the positions of its rows in shards, none of which has images of both sides."""
    n_train = len(learned_from.train)
    validation = shards_of(len(learned_from.validation))
    return [*shards_of(n_train), *(range(n_train + shard.start, n_train + shard.stop) for shard in validation)]


def embed_files(backbone: Backbone, task: Task) -> Features:
    """Return the features of image files, float16, (n, n_features)."""
    contents, sizes, for_training = task
    return embedder_of(backbone).features(EncodedImages(contents, sizes), for_training=for_training)


def computed_here(
    backbone: Backbone, images: PackedImages, learned_from: LearnedFrom, shards: list[range]
) -> Iterator[tuple[range, Features]]:
    """Yield each shard of the rows with its features, computed on this machine."""
    for shard in shards:
        chosen, for_training = Chosen(images, learned_from.rows[shard]), shard.stop <= len(learned_from.train)
        yield shard, embedder_of(backbone).features(chosen, for_training=for_training)


def computed_there(
    address: str, backbone: Backbone, images: PackedImages, learned_from: LearnedFrom, shards: list[range]
) -> Iterator[tuple[range, Features]]:
    """Yield each shard of the rows with its features, computed by the Dask cluster at `address`, as they come.

    The files travel with the task.

    Raises:
        UnavailableError: no scheduler answers at `address`, or it has no worker.
    """

    def task_of(shard: range) -> Task:
        rows = learned_from.rows[shard]
        return [images.content(row) for row in rows], images.sizes[rows], shard.stop <= len(learned_from.train)

    tasks = ((shard, task_of(shard)) for shard in shards)
    yield from computed_on_cluster(
        address, embed_files, backbone, tasks, otherwise="set embed.dask_address in params.yaml to null"
    )


def embed_dataset(
    backbone: Backbone,
    dataset: Path,
    learned_from: LearnedFrom,
    unfinished: Path,
    out: Path,
    dask_address: str | None = None,
) -> None:
    """Write the features of what training reads of a data set into the folder `out`.

    Goes on from the shards in `unfinished`.
    """
    images, rows = PackedImages(dataset), learned_from.rows
    shards = shards_by_side(learned_from)
    missing = [shard for shard in shards if not has_shard(unfinished, shard)]
    if dask_address is None:
        computed = computed_here(backbone, images, learned_from, missing)
    else:
        computed = computed_there(dask_address, backbone, images, learned_from, missing)
    with tqdm(total=len(rows), desc=f"embedding {dataset.name}", unit=" images", disable=None) as bar:
        bar.update(len(rows) - sum(map(len, missing)))
        for shard, features in computed:
            keep_shard(unfinished, shard, features)
            bar.update(len(shard))
    first = kept_shard(unfinished, shards[0])
    shape = len(rows), first.shape[1]
    table = np.lib.format.open_memmap(features_file(out, dataset.name), "w+", np.float16, shape)
    for shard in shards:
        table[shard.start : shard.stop] = kept_shard(unfinished, shard)
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
    """Write the features of what a manifest trains on into the folder `out`."""
    with replacing_folder(out) as folder:
        for name, learned_from in rows_learned_from(manifest).items():
            unfinished = unfinished_folder(checkpoints, backbone, datasets / name, learned_from)
            embed_dataset(backbone, datasets / name, learned_from, unfinished, folder, dask_address)
    shutil.rmtree(checkpoints, ignore_errors=True)


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--backbone", required=True, help="its name in params.yaml")
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file of `split`")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for unfinished work")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    params = load_params(args.params)
    backbone = named(params.backbones, args.backbone, "backbone")
    manifest = pd.read_parquet(args.manifest)
    run(backbone, manifest, args.datasets, args.checkpoints, args.out, params.embed.dask_address)


if __name__ == "__main__":
    run_main(main)
