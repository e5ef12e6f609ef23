import numpy as np
import pandas as pd

from pipeline.data.training_images import images_of_side, trained_groups, training_images

MANIFEST = pd.DataFrame(
    {
        "dataset": "walls",
        "sha256": list("abcde"),
        "photo": ["p1", None, "p2", "p3", None],
        "group": ["g1", "g2", "g3", "g4", "g5"],
        "split": ["train", "validation", "test", "external", "excluded"],
    }
)


def test_training_images_are_those_of_train_and_validation():
    assert list(training_images(MANIFEST)["sha256"]) == ["a", "b"]
    assert training_images(MANIFEST)["photo"].iloc[0] == "walls/p1"


def test_a_group_counts_as_seen_by_an_image_of_the_same_bytes_wherever_it_is_today():
    today = pd.DataFrame(
        {"dataset": "other", "sha256": ["x", "b", "y"], "photo": None, "group": ["g7", "g7", "g8"], "split": "test"}
    )
    assert trained_groups(today, training_images(MANIFEST)) == {"g7"}


def test_a_group_counts_as_seen_by_another_tile_of_a_photo_that_was_trained_on():
    today = pd.DataFrame(
        {"dataset": "walls", "sha256": ["x", "y"], "photo": ["p1", "p2"], "group": ["g1", "g3"], "split": "test"}
    )
    assert trained_groups(today, training_images(MANIFEST)) == {"g1"}


def test_images_without_a_photo_have_none_in_common():
    today = pd.DataFrame({"dataset": "walls", "sha256": ["x"], "photo": [None], "group": ["g1"], "split": "test"})
    assert trained_groups(today, training_images(MANIFEST)) == set()


def test_a_side_holds_its_own_images_with_their_labels(two_datasets, draw_tile):
    side = images_of_side(pd.read_parquet(two_datasets.manifest), "validation", two_datasets.datasets)
    assert list(zip(side.rows["dataset"], side.rows["row"], strict=True)) == [
        ("ours", 4),
        ("ours", 5),
        ("ours", 14),
        ("ours", 15),
        ("theirs", 4),
        ("theirs", 5),
    ]
    assert side.labels.tolist() == [True, False] * 3
    difference = side.pixels(5).astype(int) - draw_tile(1005, size_px=40)
    assert np.abs(difference).mean() < 3  # of JPEG
