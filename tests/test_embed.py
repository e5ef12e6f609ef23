import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from two_datasets import write_dataset

from pipeline import embed
from pipeline.data.images import INVENTORY_FILE, ImageSubset, PackedImages
from pipeline.data.training_images import Sides
from pipeline.embed import unfinished_folder
from pipeline.errors import UnavailableError
from pipeline.inference import dask_cluster
from pipeline.params import Backbone
from pipeline.training import embedder
from pipeline.training.features import read_features

ROOT = Path(__file__).parents[1]
BACKBONE = Backbone(architecture="mobilenet-v2", image_size_px=32)
N_IMAGES = 50  # every fifth of them is on the test side
N_TRAIN, N_VALIDATION = 30, 10
N_EMBEDDED = N_TRAIN + N_VALIDATION
SHARD_ROWS = 4
N_SHARDS = 8 + 3  # none has images of both sides

# A process that embeds as the stage does, but in small shards.
EMBED = f"""
import sys
from pathlib import Path
import pandas as pd
from pipeline import embed
from pipeline.training import embedder
from pipeline.params import Backbone
embedder.SHARD_ROWS = {SHARD_ROWS}
datasets, checkpoints, out = map(Path, sys.argv[1:])
backbone = Backbone.model_validate_json({BACKBONE.model_dump_json()!r})
embed.run(backbone, pd.read_parquet(datasets / "manifest.parquet"), datasets, checkpoints, out)
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, draw_tile, encode):
    folder = tmp_path_factory.mktemp("datasets")
    contents = [encode(draw_tile(seed, cracked=seed % 2 == 0, size_px=32 + 8 * (seed % 3))) for seed in range(N_IMAGES)]
    write_dataset(folder / "walls", contents, [(32 + 8 * (seed % 3),) * 2 for seed in range(N_IMAGES)])
    sides = ["train", "validation", "train", "test", "train"] * (N_IMAGES // 5)
    rows = pd.DataFrame({"dataset": "walls", "row": range(N_IMAGES), "split": sides})
    bridge = rows.assign(dataset="bridge", split="external")  # of which there is not even a folder
    pd.concat([rows, bridge]).sample(frac=1, random_state=0).to_parquet(folder / "manifest.parquet")
    return folder


@pytest.fixture(scope="module")
def manifest(datasets):
    return pd.read_parquet(datasets / "manifest.parquet")


@pytest.fixture(scope="module")
def undisturbed(datasets, manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "SHARD_ROWS", SHARD_ROWS)
        embed.run(BACKBONE, manifest, datasets, folder / "unfinished", folder / "out")
    assert not (folder / "unfinished").exists()
    return np.load(folder / "out" / "walls.npy")


def test_every_image_that_training_reads_has_its_row_of_features(datasets, undisturbed):
    assert (undisturbed.shape, undisturbed.dtype) == ((N_EMBEDDED, 1280), np.float16)
    assert len(np.unique(undisturbed, axis=0)) == N_EMBEDDED
    alone = embedder.Embedder(BACKBONE).features(ImageSubset(PackedImages(datasets / "walls"), [4, 49]))
    np.testing.assert_allclose(undisturbed[[2, N_TRAIN - 1]], alone, rtol=2e-3, atol=2e-3)


def test_features_are_read_by_the_row_of_the_inventory(datasets, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder.Embedder, "features", lambda self, images, **_: marks_of(images))
    embed.run(BACKBONE, manifest, datasets, tmp_path / "unfinished", tmp_path / "out")
    everything = marks_of(PackedImages(datasets / "walls"))
    np.testing.assert_array_equal(
        read_features(tmp_path / "out", "walls", np.array([49, 4, 0])), everything[[49, 4, 0]]
    )
    with pytest.raises(KeyError, match=r"row 8 in .*neither train nor validation"):
        read_features(tmp_path / "out", "walls", np.array([4, 8]))
    assert not list(tmp_path.glob("out/bridge*"))


@pytest.mark.parametrize("address", [None, "tcp://there:8786"])
def test_only_the_train_side_is_computed_for_training(address, datasets, manifest, tmp_path, monkeypatch):
    def side(self, images, *, for_training):
        return np.full((len(images.sizes), 1), for_training, np.float16)

    def computed_at_once(address, compute, shared, tasks, *, local_hint):
        return ((key, compute(shared, task)) for key, task in tasks)

    monkeypatch.setattr(embed, "compute_on_cluster", computed_at_once)
    monkeypatch.setattr(embedder, "SHARD_ROWS", SHARD_ROWS)
    monkeypatch.setattr(embedder.Embedder, "features", side)
    embed.run(BACKBONE, manifest, datasets, tmp_path / "unfinished", tmp_path / "out", address)
    walls = manifest[manifest["dataset"] == "walls"]
    for split, computed_for_training in (("train", 1), ("validation", 0)):
        rows = walls.loc[walls["split"] == split, "row"].to_numpy()
        assert set(read_features(tmp_path / "out", "walls", rows)[:, 0]) == {computed_for_training}


def marks_of(images):
    """Return a number for each image that tells it from the others."""
    return np.array([[images.pixels(position).mean()] for position in range(len(images.sizes))], np.float16)


def test_finished_shards_of_a_failed_run_are_not_computed_again(datasets, manifest, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(embedder, "SHARD_ROWS", SHARD_ROWS)
    real, seen = embedder.Embedder.features, []

    def fail_at_the_third(self, images, *, for_training):
        seen.append(len(images.sizes))
        if len(seen) == 3:
            raise MemoryError("at the third shard")
        return real(self, images, for_training=for_training)

    monkeypatch.setattr(embedder.Embedder, "features", fail_at_the_third)
    with pytest.raises(MemoryError, match="at the third shard"):
        embed.run(BACKBONE, manifest, datasets, tmp_path / "unfinished", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    embed.run(BACKBONE, manifest, datasets, tmp_path / "unfinished", tmp_path / "out")
    assert len(seen) == 3 + N_SHARDS - 2
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "walls.npy"), undisturbed)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_features_of_an_undisturbed_one(datasets, undisturbed, tmp_path):
    command = [sys.executable, "-c", EMBED, str(datasets), str(tmp_path / "unfinished"), str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline_s = time.monotonic() + 120
    while not list(tmp_path.glob("unfinished/**/*.npy")):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "walls.npy"), undisturbed)


def test_unfinished_work_has_another_folder_for_each_backbone_content_and_choice_of_rows(datasets, tmp_path):
    sides = Sides(np.arange(3), np.arange(3, 5))
    folders = {
        unfinished_folder(tmp_path, backbone, datasets / "walls", sides)
        for backbone in (
            BACKBONE,
            BACKBONE.model_copy(update={"image_size_px": 64}),
            BACKBONE.model_copy(update={"feature_layers": ("head_conv",)}),
            BACKBONE.model_copy(update={"training_precision": "bf16"}),
        )
    }
    other = tmp_path / "other"
    other.mkdir()
    (other / INVENTORY_FILE).write_bytes(b"another inventory")
    folders |= {
        unfinished_folder(tmp_path, BACKBONE, other, sides),
        unfinished_folder(tmp_path, BACKBONE, datasets / "walls", Sides(np.arange(3), np.arange(4, 6))),
        unfinished_folder(tmp_path, BACKBONE, datasets / "walls", Sides(np.arange(2), np.arange(2, 5))),
    }
    assert len(folders) == 7


@pytest.mark.slow
def test_a_cluster_of_processes_gives_the_same_rows_in_the_same_order(
    datasets, manifest, undisturbed, tmp_path, monkeypatch
):
    from distributed import LocalCluster

    monkeypatch.setattr(embedder, "SHARD_ROWS", SHARD_ROWS)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as started:
        address = started.scheduler_address
        embed.run(BACKBONE, manifest, datasets, tmp_path / "unfinished", tmp_path / "out", address)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "walls.npy"), undisturbed)


def test_a_scheduler_that_does_not_answer_is_a_clear_error(datasets, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_TIMEOUT_S", 1)
    with pytest.raises(
        UnavailableError, match=r"No Dask scheduler answers at 'tcp://127\.0\.0\.1:9'.*embed\.dask_address"
    ):
        embed.run(BACKBONE, manifest, datasets, tmp_path / "unfinished", tmp_path / "out", "tcp://127.0.0.1:9")
    assert not (tmp_path / "out").exists()
