import numpy as np
import pandas as pd
import pytest
from packed_greys import greys_scored, write_greys

from pipeline.evaluate import N_PER_KIND, with_occlusion_maps, worst_mistakes
from pipeline.evaluation.occlusion import occlusion_map


def unsure(batch):
    return np.full(len(batch), 0.5, np.float32)


def by_cell(batch):
    """The later a cell is hidden, and the lighter the picture, the more likely a crack."""
    return (0.1 + np.arange(len(batch)) * batch[:, 0, 0, 0] / 10_000).astype(np.float32)


def test_the_worst_mistakes_come_first():
    rows = [("crack", 0.4), ("crack", 0.1), ("crack", 0.5), ("intact", 0.6), ("intact", 0.9), ("intact", 0.2)]
    found = worst_mistakes(greys_scored(*rows), 0.5)
    assert found[["path", "label", "probability"]].to_numpy().tolist() == [
        ["1.png", "crack", 0.1],
        ["0.png", "crack", 0.4],
        ["4.png", "intact", 0.9],
        ["3.png", "intact", 0.6],
    ]


def test_test_is_one_set_and_each_external_test_set_another():
    mistakes = [("crack", 0.1)] * 4 * N_PER_KIND
    sets = np.repeat(["ours", "second", "bridge", "tunnel"], N_PER_KIND)
    table = greys_scored(*mistakes).assign(dataset=sets, split=np.repeat(["test", "external"], 2 * N_PER_KIND))
    found = worst_mistakes(table, 0.5)
    assert found.groupby("split").size().to_dict() == {"test": N_PER_KIND, "external": 2 * N_PER_KIND}
    assert found[found["split"] == "external"].groupby("dataset").size().tolist() == [N_PER_KIND, N_PER_KIND]


def test_only_a_few_mistakes_of_each_kind_are_kept():
    n = N_PER_KIND + 3
    rows = [("crack", 0.01 * k) for k in range(n)] + [("intact", 0.9)] * n
    found = worst_mistakes(greys_scored(*rows), 0.5)
    assert found["label"].tolist() == ["crack"] * N_PER_KIND + ["intact"] * N_PER_KIND
    assert found["probability"].iloc[N_PER_KIND - 1] == pytest.approx(0.01 * (N_PER_KIND - 1))


def test_each_mistake_has_the_map_of_its_own_image_after_a_round_trip_through_a_file(tmp_path, encode):
    write_greys(tmp_path / "ours", [30, 60], encode)
    table = worst_mistakes(greys_scored(("crack", 0.1), ("intact", 0.9)), 0.5).iloc[::-1]
    with_occlusion_maps(table, tmp_path, by_cell).to_parquet(tmp_path / "mistakes.parquet", index=False)
    found = pd.read_parquet(tmp_path / "mistakes.parquet")
    assert found["path"].tolist() == ["1.png", "0.png"]
    for level, values in zip([60, 30], found["occlusion_map"], strict=True):
        expected = occlusion_map(by_cell, np.full((14, 14, 3), level, np.uint8))
        np.testing.assert_array_equal(values, expected.ravel())


def test_a_model_without_mistakes_leaves_an_empty_table(tmp_path):
    table = with_occlusion_maps(worst_mistakes(greys_scored(("crack", 0.9)), 0.5), tmp_path, unsure)
    table.to_parquet(tmp_path / "mistakes.parquet", index=False)
    found = pd.read_parquet(tmp_path / "mistakes.parquet")
    assert (len(found), "occlusion_map" in found, "path" in found) == (0, True, True)
