import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.plots import MAX_CURVE_POINTS, plot_tables

HISTORY = pd.DataFrame({"step": [0, 1], "phase": "head", "loss": [0.5, 0.25], "val_loss": [0.75, 0.5]})


def tables(labels, probabilities, **histories):
    test = pd.DataFrame({"label": np.where(labels, "crack", "intact"), "probability": probabilities})
    return plot_tables(test, 0.5, histories or {"probe": HISTORY})


def test_curves_equal_those_computed_by_hand():
    drawn = tables([1, 0, 1, 0], [0.9, 0.7, 0.5, 0.1])
    assert drawn["roc"].to_numpy().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    expected = [[1, 0.5], [1, 2 / 3], [0.5, 0.5], [0.5, 1], [0, 1]]
    assert drawn["precision_recall"].to_numpy().tolist() == expected
    assert drawn["confusion"].to_numpy().tolist() == [
        ["crack", "crack"],
        ["intact", "crack"],
        ["crack", "crack"],
        ["intact", "intact"],
    ]


def test_long_curves_are_thinned_but_keep_their_ends():
    rng = np.random.default_rng(0)
    drawn = tables(rng.random(3000) < 0.5, rng.random(3000))
    roc = drawn["roc"]
    assert list(roc) == ["fpr", "tpr"]
    assert len(roc) == len(drawn["precision_recall"]) == MAX_CURVE_POINTS
    assert (roc.iloc[0].tolist(), roc.iloc[-1].tolist()) == ([0, 0], [1, 1])
    assert len(drawn["confusion"]) == 3000


def test_calibration_has_a_row_for_each_bin_with_images_and_its_interval():
    drawn = tables([0, 0, 1, 1, 1, 0], [0.01, 0.03, 0.5, 0.52, 0.98, 1.0])["reliability"]
    assert list(drawn) == ["stated", "observed", "low", "high", "n"]
    np.testing.assert_allclose(drawn[["stated", "observed", "n"]], [[0.02, 0, 2], [0.51, 1, 2], [0.99, 0.5, 2]])
    assert drawn.iloc[2][["low", "high"]].tolist() == pytest.approx([0.0945, 0.9055], abs=5e-5)


def test_the_epochs_of_all_candidates_are_in_one_table():
    drawn = tables([1, 0], [0.9, 0.1], probe=HISTORY, finetune=HISTORY.head(1))["training"]
    assert drawn.to_numpy().tolist() == [["probe", 0, 0.5, 0.75], ["probe", 1, 0.25, 0.5], ["finetune", 0, 0.5, 0.75]]
    assert list(drawn) == ["candidate", "step", "loss", "val_loss"]
