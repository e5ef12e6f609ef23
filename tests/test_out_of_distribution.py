"""What the starter model takes for concrete, on photos that come with scikit-image and on real decks."""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.data.photos import read_photo
from pipeline.params import Map
from pipeline.registry.model_lookup import STARTER, found_model

PARAMS = Map(tile_px=256, overlap=0, model_mm_per_px=None)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mapper():
    with found_model("none", STARTER) as found:
        return CrackMapper(found.load(), PARAMS)


def sky():
    blue, pale = np.array([90, 140, 220]), np.array([190, 215, 240])
    share = np.linspace(0, 1, 256)[:, None, None]
    return np.broadcast_to(blue * (1 - share) + pale * share, (256, 256, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["grass", "brick", "gravel", "astronaut", "sky", "black"])
def test_images_without_concrete_are_for_review(mapper, name):
    assert set(labels_of(mapper, name)) == {"review"}


def test_of_a_cup_of_coffee_two_tiles_of_six_pass_for_concrete_and_none_for_intact_concrete(mapper):
    assert sorted(labels_of(mapper, "coffee")) == ["crack"] * 2 + ["review"] * 4


def labels_of(mapper, name):
    from skimage import data

    drawn = {"sky": sky, "black": lambda: np.zeros((256, 256, 3), np.uint8)}
    pixels = np.asarray(Image.fromarray(drawn.get(name, getattr(data, name, None))()).convert("RGB"))
    return mapper.map(pixels).tiles["label"].tolist()


def test_a_held_out_deck_is_in_distribution_and_its_cracks_rank_first(mapper):
    if "CRACKS_REAL_DATA" not in os.environ:
        pytest.skip("CRACKS_REAL_DATA is not set: it names a folder with photos/Decks-7029.jpg")
    photos = Path(os.environ["CRACKS_REAL_DATA"]) / "photos"
    truth = pd.read_csv(photos / "tiles.csv").query("photo == 'Decks-7029.jpg'")
    crack_map = mapper.map(read_photo((photos / "Decks-7029.jpg").read_bytes()).pixels)
    assert crack_map.tiles[["x", "y"]].to_numpy().tolist() == truth[["x", "y"]].to_numpy().tolist()
    assert crack_map.tiles["in_distribution"].mean() > 0.9
    assert (crack_map.tiles.query("reason == 'unsure'")["label"] == "review").sum() <= math.ceil(0.2 * len(truth))
    assert roc_auc_score(truth["cracked"], crack_map.tiles["probability"]) == pytest.approx(0.895, abs=0.01)
