import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cracked_photos import cracked_photo
from PIL import Image
from tiny_model import write_blind_tracer

from pipeline.crack_maps import batch_prediction, map_files
from pipeline.errors import UnavailableError
from pipeline.inference import dask_cluster
from pipeline.params import Map
from pipeline.registry.model_lookup import found_model

PARAMS = Map(tile_px=40, overlap=0, model_mm_per_px=None)


@pytest.fixture(scope="module")
def address():
    """The address of a cluster of one process, which shares only the code with this one."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as started:
        yield started.scheduler_address


@pytest.fixture
def found(dark_is_crack):
    with found_model("cracks", str(dark_is_crack)) as found:
        yield found


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths[:5]):
        Image.fromarray(np.full((80, 80, 3), 50 * n, np.uint8)).save(path)
    paths[5].write_text("no image")
    return paths


@pytest.mark.slow
def test_images_scored_on_a_cluster_get_the_same_table(address, found, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_prediction, "PART_IMAGES", 2)
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert batch_prediction.run(found, photos, here) == batch_prediction.run(found, photos, there, address)
    assert here.read_text() == there.read_text()


@pytest.mark.slow
def test_photos_mapped_on_a_cluster_get_the_same_files(address, found, photos, tmp_path):
    pixels, _ = cracked_photo(300, 300, [[(0, 150), (300, 150)]], 140, 4)
    Image.fromarray(pixels).save(photos[4])
    found = replace(found, folder=shutil.copytree(found.folder, tmp_path / "blind"))
    write_blind_tracer(found.folder)
    here, there = tmp_path / "here", tmp_path / "there"
    map_files.run(found, photos, here, PARAMS)
    map_files.run(found, photos, there, PARAMS, dask_address=address)
    assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in there.iterdir())
    for path in here.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name
    summary = pd.read_csv(there / "summary.csv")
    assert (summary["error"] == "not an image").sum() == 1
    assert summary["n_lines"].sum() == 0  # a worker has the tracer of the model, which is blind


def test_the_error_for_an_unreachable_cluster_says_how_to_run_without_one(found, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_TIMEOUT_S", 1)
    with pytest.raises(UnavailableError, match=r"No Dask scheduler answers at .* or leave --dask out"):
        batch_prediction.run(found, photos, tmp_path / "scores.csv", "tcp://127.0.0.1:9")
    assert not (tmp_path / "scores.csv").exists()
