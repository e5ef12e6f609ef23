import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import leakage as module
from pipeline.evaluation.leakage import compare_splits, leakage_effect, random_sides, sample_groups
from pipeline.training.features import features_file, rows_file


def twins(n_pairs=150, n_features=20, seed=0):
    """Images in pairs of copies; their features identify the pair but do not predict the label."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_pairs, n_features)).repeat(2, axis=0) * 10
    group = np.arange(n_pairs).repeat(2)
    side = np.where(np.arange(n_pairs) < 0.8 * n_pairs, "train", "validation").repeat(2)
    label = np.where(rng.random(n_pairs) < 0.5, "crack", "intact").repeat(2)
    rows = np.arange(2 * n_pairs)
    images = pd.DataFrame({"dataset": "ours", "row": rows, "label": label, "group": group, "split": side})
    return images, features.astype(np.float32)


def test_copies_across_sides_make_a_useless_model_look_good():
    images, features = twins(n_features=200)
    result = compare_splits(images, features)
    assert result["leak_free_f1"] < 0.7
    assert result["random_f1"] > result["leak_free_f1"] + 0.15
    assert result["random_errors_per_thousand"] < result["leak_free_errors_per_thousand"] - 150


def test_leaked_images_are_counted_by_hand(monkeypatch):
    images, features = twins(n_pairs=6)
    assigned = np.where(np.array(list("tv tt vv tv tv tt".replace(" ", ""))) == "t", "train", "validation")
    images = images.assign(split=np.sort(assigned), label=["crack", "intact"] * 6)
    monkeypatch.setattr(module, "random_sides", lambda images: assigned)
    result = compare_splits(images, features)
    assert (result["n_scored"], result["n_scored_with_copy_in_train"]) == (5, 3)
    assert result["share_of_scored_with_copy_in_train"] == pytest.approx(3 / 5)


def test_a_random_split_has_the_sizes_of_the_other_and_differs_from_it():
    images, _ = twins()
    random = random_sides(images)
    for label in ("crack", "intact"):
        of_label = images["label"] == label
        assert sorted(random[of_label]) == sorted(images.loc[of_label, "split"])
    assert 0.2 < np.mean(random != images["split"]) < 0.5  # 0.32 is expected: 2 x 0.8 x 0.2


def test_errors_per_thousand_and_errors_agree():
    result = compare_splits(*twins())
    for split in ("leak_free", "random"):
        errors = result[f"{split}_errors_per_thousand"] * result["n_scored"] / 1000
        assert result[f"{split}_n_errors"] == pytest.approx(errors)


def test_complete_groups_are_sampled_and_as_many_as_fit(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 101)
    images, _ = twins()
    drawn = sample_groups(images)
    assert len(drawn) == 100
    assert set(drawn["group"].value_counts()) == {2}
    assert drawn.index.max() > 150


def keep(folder, features, rows):
    np.save(features_file(folder, "ours"), features)
    np.save(rows_file(folder, "ours"), rows)


def test_features_are_taken_by_the_row_of_the_image_and_what_training_does_not_read_is_left_out(tmp_path):
    images, features = twins()
    shifted = images.assign(row=images["row"] * 2 + 7)
    keep(tmp_path, features, shifted["row"].to_numpy())
    others = shifted.head(7).assign(row=np.arange(7), split=["excluded", "test"] * 3 + ["test"])
    result = leakage_effect(pd.concat([others, shifted]).sample(frac=1, random_state=3), tmp_path)
    assert (result["n_available"], result["n_images"]) == (300, 300)
    expected = compare_splits(images, features)
    assert result["leak_free_f1"] == pytest.approx(expected["leak_free_f1"])


def test_features_in_half_precision_do_not_overflow(tmp_path):
    images, features = twins()
    large = features * 1000  # half precision ends at 65,504
    for dtype in (np.float16, np.float32):
        keep(tmp_path, large.astype(np.float16).astype(dtype), images["row"].to_numpy())
        result = leakage_effect(images, tmp_path)
        assert result["random_f1"] == pytest.approx(
            compare_splits(images, large.astype(np.float16).astype(float))["random_f1"]
        )


def test_a_constant_feature_gives_finite_scores():
    images, features = twins()
    features[:, 0] = 5
    assert np.isfinite(compare_splits(images, features)["leak_free_f1"])
