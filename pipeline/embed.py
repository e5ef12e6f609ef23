"""Send every image once through a frozen backbone and keep its features.

Writes into --out a file DATASET.npy for each data set: float16, (n_images, n_features), rows as in the inventory. Runs
on this machine, or over the Dask cluster at `embed.dask_address`; finished shards are kept in --checkpoints until the
end.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.cluster import computed_on_cluster
from pipeline.files import replacing_folder
from pipeline.images import INVENTORY_FILE, Chosen, EncodedImages, PackedImages, Sizes
from pipeline.inference import Features, embedder_of, has_shard, keep_shard, kept_shard, shards_of
from pipeline.params import Backbone, load_params, named
from pipeline.stage import run_main, stage_parser

Task = tuple[list[bytes], Sizes]  # the files of a shard and their sizes


def unfinished_folder(checkpoints: Path, backbone: Backbone, dataset: Path) -> Path:
    """Return the folder of unfinished work, another one for each backbone and content of a data set."""
    digest = hashlib.sha256(backbone.model_dump_json().encode())
    digest.update((dataset / INVENTORY_FILE).read_bytes())
    return checkpoints / digest.hexdigest()[:16]


def embed_files(backbone: Backbone, task: Task) -> Features:
    """Return the features of image files, float16, (n, n_features)."""
    return embedder_of(backbone).features(EncodedImages(*task))


def computed_here(backbone: Backbone, images: PackedImages, shards: list[range]) -> Iterator[tuple[range, Features]]:
    """Yield each shard with its features, computed on this machine."""
    for shard in shards:
        yield shard, embedder_of(backbone).features(Chosen(images, shard))


def computed_there(
    address: str, backbone: Backbone, images: PackedImages, shards: list[range]
) -> Iterator[tuple[range, Features]]:
    """Yield each shard with its features, computed by the Dask cluster at `address`, as they come.

    The files travel with the task.

    Raises:
        UnavailableError: no scheduler answers at `address`, or it has no worker.
    """
    tasks = (
        (shard, ([images.content(row) for row in shard], images.sizes[shard.start : shard.stop])) for shard in shards
    )
    yield from computed_on_cluster(
        address, embed_files, backbone, tasks, otherwise="set embed.dask_address in params.yaml to null"
    )


def embed_dataset(
    backbone: Backbone, dataset: Path, unfinished: Path, out: Path, dask_address: str | None = None
) -> None:
    """Write the features of a data set to the file `out`, going on from the shards in `unfinished`."""
    images = PackedImages(dataset)
    shards = shards_of(len(images.sizes))
    missing = [shard for shard in shards if not has_shard(unfinished, shard)]
    if dask_address is None:
        computed = computed_here(backbone, images, missing)
    else:
        computed = computed_there(dask_address, backbone, images, missing)
    with tqdm(total=len(images.sizes), desc=f"embedding {dataset.name}", unit=" images", disable=None) as bar:
        bar.update(len(images.sizes) - sum(map(len, missing)))
        for shard, features in computed:
            keep_shard(unfinished, shard, features)
            bar.update(len(shard))
    first = kept_shard(unfinished, shards[0])
    table = np.lib.format.open_memmap(out, "w+", np.float16, (len(images.sizes), first.shape[1]))
    for shard in shards:
        table[shard.start : shard.stop] = kept_shard(unfinished, shard)
    table.flush()


def run(
    backbone: Backbone, names: list[str], datasets: Path, checkpoints: Path, out: Path, dask_address: str | None = None
) -> None:
    """Write the features of the named data sets into the folder `out`."""
    with replacing_folder(out) as folder:
        for name in names:
            unfinished = unfinished_folder(checkpoints, backbone, datasets / name)
            embed_dataset(backbone, datasets / name, unfinished, folder / f"{name}.npy", dask_address)
    shutil.rmtree(checkpoints, ignore_errors=True)


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--backbone", required=True, help="its name in params.yaml")
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for unfinished work")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    params = load_params(args.params)
    backbone = named(params.backbones, args.backbone, "backbone")
    run(backbone, list(params.datasets), args.datasets, args.checkpoints, args.out, params.embed.dask_address)


if __name__ == "__main__":
    run_main(main)
