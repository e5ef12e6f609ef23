from types import SimpleNamespace

import pandas as pd
import pytest

from pipeline.data.images import INVENTORY_FILE, QUARANTINE_FILE
from pipeline.evaluation.model_card import dataset_facts, source_of, weights_of

METU = [f"Positive/{n:05}.jpg" for n in range(50)] + [f"Negative/{n:05}_1.jpg" for n in range(50)]
SDNET = [f"Decks/Cracked/70{n}-11.jpg" for n in range(10, 60)] + [f"W/UW/70{n}-111.jpg" for n in range(10, 60)]


def inventory(paths, size_px):
    return pd.DataFrame({"path": paths, "height": size_px, "width": size_px})


def test_published_data_sets_are_recognised_by_their_images():
    assert "10.17632/5y9wdsg2zt.2" in source_of(inventory(METU, 227), is_drawn=False)
    assert "10.15142/T3TD19" in source_of(inventory(SDNET, 256), is_drawn=False)
    in_a_folder = [f"concrete/{path}" for path in METU]
    assert "Özgenel" in source_of(inventory(in_a_folder, 227), is_drawn=False)


@pytest.mark.parametrize(
    ("paths", "size_px"),
    [
        (METU, 256),
        (SDNET, 227),
        ([f"Positive/bridge-{n}.jpg" for n in range(100)], 227),
        ([*METU[:98], "Positive/mine.jpg", "Negative/mine.jpg"], 227),
    ],
)
def test_other_data_is_not_attributed_to_a_published_data_set(paths, size_px):
    text = source_of(inventory(paths, size_px), is_drawn=False)
    assert text.startswith("your own data")


def test_drawn_images_are_called_drawn_even_if_they_match_a_published_data_set():
    assert "not photographed" in source_of(inventory(METU, 227), is_drawn=True)


def test_known_weights_have_their_licence_and_unknown_ones_a_hint():
    assert weights_of("efficientnet-lite2").endswith("Apache-2.0")
    assert weights_of("mobilenet-v2").endswith("MIT")
    assert weights_of("other-net") == "other-net: look up the licence of its weights"


def test_the_facts_of_each_data_set_are_counted_from_the_manifest(tmp_path):
    params = SimpleNamespace(
        datasets={name: SimpleNamespace(is_drawn=False) for name in ("far", "ours")},
        split=SimpleNamespace(train_on=("ours",)),
    )
    manifest = pd.DataFrame(
        {
            "dataset": ["ours"] * 4 + ["far"],
            "label": ["crack", "crack", "intact", "intact", "intact"],
            "group": ["a", "a", "b", "c", "d"],
            "split": ["train", "train", "test", "excluded", "external"],
        }
    )
    for name, n_bad in (("ours", 2), ("far", 0)):
        (tmp_path / name).mkdir()
        inventory(["a.jpg"], 64).to_parquet(tmp_path / name / INVENTORY_FILE)
        quarantine = pd.DataFrame(
            {"batch": "", "path": [f"{n}.jpg" for n in range(n_bad)], "reason": "broken", "is_image": False}
        )
        quarantine.to_csv(tmp_path / name / QUARANTINE_FILE, index=False)
    ours, far = dataset_facts(params, manifest, tmp_path)
    assert (ours.name, ours.is_trained_on, far.is_trained_on) == ("ours", True, False)
    assert (ours.n, ours.n_crack, ours.n_groups, ours.n_quarantined) == (4, 2, 3, 2)
    assert ours.sides == {"train": 2, "validation": 0, "test": 1, "external": 0, "excluded": 1}
    assert (far.n, far.n_crack, far.n_quarantined) == (1, 0, 0)
