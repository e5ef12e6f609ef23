import numpy as np
import pandas as pd
import pytest

from pipeline.images import IMAGES_FILE, INVENTORY_FILE
from pipeline.pictures import N_A_KIND, random_predictions, worst_mistakes


def predictions(*rows):
    """A table of (label, probability)."""
    table = pd.DataFrame(rows, columns=["label", "probability"])
    return table.assign(dataset="ours", row=np.arange(len(table)), path=[f"{row}.png" for row in range(len(table))])


def write_greys(folder, levels, encode):
    """Write a data set of plain greys as `ingest` leaves it."""
    folder.mkdir()
    contents = [encode(np.full((14, 14, 3), level, np.uint8), "PNG") for level in levels]
    (folder / IMAGES_FILE).write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    offsets = np.cumsum([0, *lengths[:-1]])
    table = pd.DataFrame({"height": 14, "width": 14, "offset": offsets, "n_bytes": lengths})
    table.to_parquet(folder / INVENTORY_FILE)


def unsure(batch):
    return np.full(len(batch), 0.5, np.float32)


def test_the_worst_mistakes_come_first_and_each_with_its_own_picture(tmp_path, encode):
    rows = [("crack", 0.4), ("crack", 0.1), ("crack", 0.5), ("intact", 0.6), ("intact", 0.9), ("intact", 0.2)]
    write_greys(tmp_path / "ours", [20 * row for row in range(len(rows))], encode)
    pictures = worst_mistakes(predictions(*rows), 0.5, tmp_path, unsure)
    assert [(picture.path, picture.label, picture.probability) for picture in pictures] == [
        ("1.png", "crack", 0.1),
        ("0.png", "crack", 0.4),
        ("4.png", "intact", 0.9),
        ("3.png", "intact", 0.6),
    ]
    assert [int(picture.pixels.max()) for picture in pictures] == [20, 0, 80, 60]


def test_each_mistake_has_a_map_of_its_own_picture(tmp_path, encode):
    write_greys(tmp_path / "ours", [30, 60], encode)
    pictures = worst_mistakes(predictions(("crack", 0.1), ("intact", 0.9)), 0.5, tmp_path, unsure)
    for picture in pictures:
        np.testing.assert_array_equal(picture.heat, picture.pixels)  # nothing depends on anything: plain grey


def test_of_many_mistakes_a_few_of_each_kind_are_shown(tmp_path, encode):
    n = N_A_KIND + 3
    write_greys(tmp_path / "ours", [0] * 2 * n, encode)
    rows = [("crack", 0.01 * k) for k in range(n)] + [("intact", 0.9)] * n
    pictures = worst_mistakes(predictions(*rows), 0.5, tmp_path, unsure)
    assert [picture.label for picture in pictures] == ["crack"] * N_A_KIND + ["intact"] * N_A_KIND
    assert pictures[N_A_KIND - 1].probability == pytest.approx(0.01 * (N_A_KIND - 1))


def test_a_model_without_mistakes_has_no_pictures(tmp_path):
    assert worst_mistakes(predictions(("crack", 0.9)), 0.5, tmp_path, unsure) == []


def test_random_predictions_are_right_then_wrong_and_the_same_each_time(tmp_path, encode):
    rows = [("crack", 0.9)] * 20 + [("intact", 0.1)] * 20 + [("crack", 0.1), ("intact", 0.9), ("crack", 0.2)]
    write_greys(tmp_path / "ours", range(len(rows)), encode)
    shown, again = (random_predictions(predictions(*rows), 0.5, tmp_path) for _ in range(2))
    paths = [picture.path for picture in shown]
    assert [picture.path for picture in again] == paths
    assert len(set(paths)) == N_A_KIND + 3
    assert set(paths[N_A_KIND:]) == {"40.png", "41.png", "42.png"}
    assert {picture.label for picture in shown[:N_A_KIND]} == {"crack", "intact"}
    assert all(picture.heat is None for picture in shown)
    assert [f"{picture.pixels.max()}.png" for picture in shown] == paths
