import numpy as np
import pandas as pd
import pytest

from pipeline import leaking as module
from pipeline.leaking import compare, drawn_groups, leaking, random_sides


def twins(n_pairs=150, n_features=20, seed=0):
    """Images in pairs of copies, whose features say nothing of the label, but which twin is which."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_pairs, n_features)).repeat(2, axis=0) * 10
    group = np.arange(n_pairs).repeat(2)
    side = np.where(np.arange(n_pairs) < 0.8 * n_pairs, "train", "test").repeat(2)
    label = np.where(rng.random(n_pairs) < 0.5, "crack", "intact").repeat(2)
    rows = np.arange(2 * n_pairs)
    images = pd.DataFrame({"dataset": "ours", "row": rows, "label": label, "group": group, "split": side})
    return images, features.astype(np.float32)


def test_copies_across_sides_make_a_useless_model_look_good():
    images, features = twins(n_features=200)
    result = compare(images, features)
    assert result["leak_free_f1"] < 0.7
    assert result["random_f1"] > result["leak_free_f1"] + 0.15
    assert result["random_errors_per_thousand"] < result["leak_free_errors_per_thousand"] - 150


def test_leaked_test_images_are_counted_by_hand(monkeypatch):
    images, features = twins(n_pairs=6)
    dealt = "train test | train train | test test | train test | test train | validation test".replace("| ", "").split()
    dealt = np.array(dealt)
    images = images.assign(split=np.sort(dealt), label=["crack", "intact"] * 6)
    monkeypatch.setattr(module, "random_sides", lambda images: dealt)
    result = compare(images, features)
    assert (result["n_test"], result["n_test_with_copy_in_train"]) == (6, 3)
    assert result["share_of_test_with_copy_in_train"] == pytest.approx(3 / 6)


def test_a_random_split_has_the_sizes_of_the_other_and_differs_from_it():
    images, _ = twins()
    random = random_sides(images)
    for label in ("crack", "intact"):
        of_label = images["label"] == label
        assert sorted(random[of_label]) == sorted(images.loc[of_label, "split"])
    assert 0.2 < np.mean(random != images["split"]) < 0.5  # 0.32 is expected: 2 x 0.8 x 0.2


def test_errors_per_thousand_and_errors_agree():
    result = compare(*twins())
    for split in ("leak_free", "random"):
        errors = result[f"{split}_errors_per_thousand"] * result["n_test"] / 1000
        assert result[f"{split}_n_errors"] == pytest.approx(errors)


def test_whole_groups_are_drawn_and_as_many_as_fit(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 101)
    images, _ = twins()
    drawn = drawn_groups(images)
    assert len(drawn) == 100
    assert set(drawn["group"].value_counts()) == {2}
    assert drawn.index.max() > 150


def test_features_are_taken_by_the_row_of_the_image_and_excluded_ones_are_left_out(tmp_path):
    images, features = twins()
    np.save(tmp_path / "ours.npy", np.concatenate([np.full((7, 20), np.nan, np.float32), features]))
    shifted = images.assign(row=images["row"] + 7)
    excluded = shifted.head(7).assign(row=np.arange(7), split="excluded")
    result = leaking(pd.concat([excluded, shifted]).sample(frac=1, random_state=3), tmp_path)
    assert (result["n_available"], result["n_images"]) == (300, 300)
    expected = compare(images, features)
    assert result["leak_free_f1"] == pytest.approx(expected["leak_free_f1"])


def test_features_in_half_precision_do_not_overflow(tmp_path):
    images, features = twins()
    large = features * 1000  # half precision ends at 65,504
    for dtype in (np.float16, np.float32):
        np.save(tmp_path / "ours.npy", large.astype(np.float16).astype(dtype))
        result = leaking(images, tmp_path)
        assert result["random_f1"] == pytest.approx(
            compare(images, large.astype(np.float16).astype(float))["random_f1"]
        )


def test_a_feature_that_never_changes_does_no_harm():
    images, features = twins()
    features[:, 0] = 5
    assert np.isfinite(compare(images, features)["leak_free_f1"])
