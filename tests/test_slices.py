import numpy as np
import pandas as pd
import pytest

from pipeline.data.images import INVENTORY_FILE
from pipeline.evaluation.slices import MIN_IMAGES, sets_of, slice_table, slices_of, with_measures
from pipeline.models.decision import Decision
from pipeline.models.metrics import scores


def rows_of(n, *, dataset="ours", split="test", surface="Walls", photo=None, seed=0):
    rng = np.random.default_rng(seed)
    label = np.where(np.arange(n) % 2 == 0, "crack", "intact")
    return pd.DataFrame(
        {
            "dataset": dataset,
            "split": split,
            "row": np.arange(n),
            "label": label,
            "slice": surface,
            "photo": photo,
            "group": [f"{dataset}{surface}{photo or row}" for row in range(n)],
            "probability": np.clip(rng.normal(np.where(label == "crack", 0.6, 0.4), 0.2), 0, 1),
            "brightness": np.arange(n) * 2.0,
            "sharpness": 100.0,
            "size": 227,
        }
    )


def slice_row(table, kind, value, name="test"):
    (row,) = table[(table["set"] == name) & (table["kind"] == kind) & (table["slice"] == value)].to_dict("records")
    return row


def test_the_sets_are_test_each_data_set_of_it_and_each_external_set():
    rows = pd.concat([rows_of(4, dataset="b"), rows_of(2, dataset="a"), rows_of(3, dataset="a-far", split="external")])
    sizes = {name: len(part) for name, part in sets_of(rows).items()}
    assert list(sizes.items()) == [("test", 6), ("test:a", 2), ("test:b", 4), ("external:a-far", 3)]


def test_a_surface_has_the_scores_of_its_own_images():
    walls, decks = rows_of(60, seed=1), rows_of(40, surface="Decks", seed=2)
    row = slice_row(slice_table(pd.concat([walls, decks]), Decision(0.5, 0.5, 0.5)), "surface", "Decks")
    plain = scores((decks["label"] == "crack").to_numpy(), decks["probability"].to_numpy(), 0.5)
    assert (row["n"], row["n_groups"], row["prevalence"]) == (40, 40, 0.5)
    assert {name: row[name] for name in ("f1", "auroc", "ece")} == pytest.approx(
        {name: plain[name] for name in ("f1", "auroc", "ece")}
    )
    assert row["f1_low"] < row["f1"] < row["f1_high"]


def test_quarters_contain_a_quarter_each_and_are_named_by_their_limits():
    parts = {value: len(part) for kind, value, part in slices_of(rows_of(100)) if kind == "brightness"}
    assert parts == {"0 to 49.5": 25, "49.5 to 99": 25, "99 to 148": 25, "148 to 198": 25}


def test_a_measure_that_is_constant_makes_no_slices():
    assert {kind for kind, _, _ in slices_of(rows_of(40, photo="7001"))} == {"all", "brightness"}


def test_quarters_that_end_at_the_same_value_are_one_slice():
    rows = rows_of(100).assign(size=[227] * 60 + [256] * 25 + [500] * 15)
    parts = {value: len(part) for kind, value, part in slices_of(rows) if kind == "size"}
    assert parts == {"227 to 256": 85, "256 to 500": 15}


def test_photos_are_slices_with_scores_and_without_intervals():
    rows = pd.concat([rows_of(40, photo="7001", seed=1), rows_of(40, photo="7002", seed=2)])
    row = slice_row(slice_table(rows, Decision(0.5, 0.5, 0.5)), "photo", "7002")
    assert (row["n"], row["n_groups"]) == (40, 1)
    assert 0 < row["f1"] < 1
    assert np.isnan(row["f1_low"])


def test_a_slice_that_is_too_small_or_has_one_label_has_no_scores():
    few = rows_of(MIN_IMAGES - 1, surface="Decks")
    one_label = rows_of(40, surface="Pavements").assign(label="intact")
    table = slice_table(pd.concat([rows_of(60), few, one_label]), Decision(0.5, 0.5, 0.5))
    for surface, n in (("Decks", MIN_IMAGES - 1), ("Pavements", 40)):
        row = slice_row(table, "surface", surface)
        assert row["n"] == n
        scored = [value for name, value in row.items() if name.startswith(("f1", "auroc", "ece", "accuracy"))]
        assert np.isnan(scored).all()
        assert scored
    assert 0 < slice_row(table, "surface", "Walls")["f1"] < 1


def test_the_measures_of_an_image_are_those_of_its_row_in_the_inventory(tmp_path):
    for name, brightness in (("a", [10.0, 20.0]), ("b", [30.0, 40.0])):
        (tmp_path / name).mkdir()
        pd.DataFrame({"brightness": brightness, "sharpness": 1.0, "height": [100, 90], "width": [80, 120]}).to_parquet(
            tmp_path / name / INVENTORY_FILE
        )
    rows = pd.DataFrame({"dataset": ["b", "a", "b"], "row": [1, 0, 0], "label": "crack"})
    measured = with_measures(rows, tmp_path)
    assert measured["brightness"].tolist() == [40, 10, 30]
    assert measured["size"].tolist() == [90, 80, 80]
    assert measured["row"].tolist() == [1, 0, 0]
