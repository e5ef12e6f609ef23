import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_info

from pipeline.models.linear_head import LinearHead
from pipeline.params import Probe
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.probe import N_FOLDS, FittedHead, TrainingRows, average_heads, equal_weights, fit_probe


def ignore(step, values):
    pass


def probe(**changes):
    settings = {"kind": "probe", "backbone": "any", "n_components": 6, "l2_penalties": [0.1, 0.001], "seed": 0}
    return Probe(**settings | changes)


def feature_rows(n, seed=0, noise=0.3):
    """Training rows whose features separate the labels, in units that differ a thousandfold."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2 == 0
    features = rng.normal(0, noise, (n, 6)) + np.where(labels, 1, -1)[:, None]
    features = (features * [0.1, 1, 10, 100, 1, 1] + [5, 0, 3, -40, 1, 1]).astype(np.float16)
    return TrainingRows(features, labels, np.arange(n) // 2 % N_FOLDS, np.full(n, "walls"))


def logits_of(head, features):
    return features.astype(np.float64) @ head.kernel + head.bias


def test_a_probe_fits_separable_rows_perfectly(tmp_path):
    rows = feature_rows(30)
    head = fit_probe({"walls": rows}, probe(l2_penalties=[1e-4]), TrainingHistory(tmp_path / "h", ignore))
    np.testing.assert_array_equal(logits_of(head, rows.features) > 0, rows.labels)


def test_the_head_on_raw_features_has_the_loss_of_the_fit_on_components(tmp_path):
    rows = feature_rows(40, noise=1.5)
    history = TrainingHistory(tmp_path / "h", ignore)
    head = fit_probe({"walls": rows}, probe(l2_penalties=[0.01]), history)
    loss = np.logaddexp(0, np.where(rows.labels, -1, 1) * logits_of(head, rows.features)).mean()
    assert loss == pytest.approx(history.rows[0]["loss"], rel=1e-3)


def test_the_penalty_with_the_lowest_loss_on_held_out_folds_is_chosen(tmp_path):
    rows = feature_rows(24, noise=2.5)
    history = TrainingHistory(tmp_path / "h", ignore)
    chosen = fit_probe({"walls": rows}, probe(l2_penalties=[1e-6, 0.1, 10.0]), history)
    assert [row["l2_penalty"] for row in history.rows] == [10.0, 0.1, 1e-6]
    best = min(history.rows, key=lambda row: row["val_loss"])["l2_penalty"]
    assert best == 0.1  # neither end: a small penalty overfits, a huge one underfits
    alone = fit_probe({"walls": rows}, probe(l2_penalties=[best]), TrainingHistory(tmp_path / "alone", ignore))
    np.testing.assert_array_equal(chosen.kernel, alone.kernel)


def test_a_row_is_never_scored_by_a_model_trained_on_its_fold(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(36) % 2 == 0
    once = rng.normal(0, 1, (18, 30))
    features = np.repeat(once, 2, axis=0).astype(np.float16)  # pairs of copies, one of each label: nothing to learn
    groups_kept = TrainingRows(features, labels, np.arange(36) // 2 % N_FOLDS, np.full(36, "walls"))
    history = TrainingHistory(tmp_path / "h", ignore)
    fit_probe({"walls": groups_kept}, probe(n_components=30, l2_penalties=[1e-3]), history)
    assert history.rows[0]["val_loss"] >= np.log(2) - 1e-6


def test_a_feature_that_is_constant_in_training_does_not_dominate_the_logit(tmp_path):
    rows = feature_rows(30)
    rows.features[:, 4] = 0
    head = fit_probe({"walls": rows}, probe(), TrainingHistory(tmp_path / "h", ignore))
    other = rows.features.copy()
    other[:, 4] = 0.2
    assert np.abs(logits_of(head, other) - logits_of(head, rows.features)).max() < 5


def test_a_probe_is_the_same_to_the_bit_when_it_is_trained_again(tmp_path):
    rows = feature_rows(50, noise=2)
    heads = [
        fit_probe({"walls": rows}, probe(n_components=3), TrainingHistory(tmp_path / name, ignore))
        for name in ("once", "again")
    ]
    np.testing.assert_array_equal(heads[0].kernel, heads[1].kernel)
    assert heads[0].bias == heads[1].bias


def test_a_probe_computes_on_one_core_so_that_it_is_the_same_on_a_machine_with_more(tmp_path):
    n_threads = set()

    def look(step, values):
        n_threads.update(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")

    fit_probe({"walls": feature_rows(30)}, probe(), TrainingHistory(tmp_path / "h", look))
    assert n_threads == {1}


def test_all_sources_and_both_labels_in_each_have_equal_weight():
    labels = np.array([True, False, False, False, True, False])
    sources = np.array(["large", "large", "large", "large", "small", "small"])
    weights = equal_weights(labels, sources)
    # four cells of equal weight, together 6: the three intact ones of "large" share what each other one has alone
    np.testing.assert_allclose(weights, [1.5, 0.5, 0.5, 0.5, 1.5, 1.5])


def head_on(*kernel, bias=0.0):
    return LinearHead(np.array(kernel, np.float32), bias)


def rows_with(features):
    """Training rows of one crack and one intact image."""
    return TrainingRows(
        np.array(features, np.float16), np.array([True, False]), np.zeros(2, np.int64), np.full(2, "walls")
    )


def test_heads_are_weighted_by_their_spread_on_the_training_rows_of_the_other():
    rows = {"walls": rows_with([[4, 0], [0, 0]]), "decks": rows_with([[0, 1], [0, -3]])}
    # on the decks the logits of the walls' head are 10 and -30, a standard deviation of 20; the other way round 2 and
    # -2 about their mean, so 2: the shares are 1/20 and 1/2 of their sum
    fitted = {"walls": FittedHead(head_on(50, 10, bias=3), 1.0), "decks": FittedHead(head_on(1, 7, bias=1), 1.0)}
    head = average_heads(fitted, rows)
    np.testing.assert_allclose(head.kernel, [(50 + 10) / 11, (10 + 70) / 11], rtol=1e-6)
    assert head.bias == pytest.approx((3 + 10) / 11)


def test_a_head_that_guesses_has_a_small_weight():
    rows = {"walls": rows_with([[1, 0], [-1, 0]]), "decks": rows_with([[1, 0], [-1, 0]])}
    good, guessing, worse = (
        FittedHead(head_on(1, 0), 0.8),
        FittedHead(head_on(0.5, 0, bias=9), 0.0),
        FittedHead(head_on(1, 0, bias=9), -0.3),
    )
    head = average_heads({"walls": good, "decks": guessing}, rows)
    # 0.8 over a spread of 1 against 0.01 over a spread of 0.5
    assert head.bias == pytest.approx(9 * 0.02 / 0.82)
    assert average_heads({"walls": good, "decks": worse}, rows).bias == pytest.approx(9 * 0.01 / 0.81)


def test_a_head_with_a_constant_logit_has_no_weight():
    rows = {"walls": rows_with([[1, 0], [-1, 0]]), "decks": rows_with([[2, 0], [-1, 0]])}
    silent = FittedHead(head_on(0, 5, bias=9), 1.0)
    head = average_heads({"walls": FittedHead(head_on(3, 0, bias=1), 0.5), "decks": silent}, rows)
    np.testing.assert_allclose([*head.kernel, head.bias], [3, 0, 1])
    nothing = average_heads({"walls": silent, "decks": silent}, rows)
    np.testing.assert_array_equal([*nothing.kernel, nothing.bias], [0, 0, 0])


def test_each_data_set_has_a_head_of_its_own_and_a_row_of_history_for_each_penalty(tmp_path):
    walls, decks = feature_rows(30), feature_rows(30, seed=1)
    rng = np.random.default_rng(0)
    for rows, blind in (
        (walls, slice(0, 3)),
        (decks, slice(3, 6)),
    ):  # the features that separate one data set are noise in the other
        rows.features[:, blind] = rng.permutation(rows.features[:, blind])
    history = TrainingHistory(tmp_path / "h", ignore)
    both = fit_probe({"walls": walls, "decks": decks}, probe(), history)
    assert [(row["phase"], row["l2_penalty"]) for row in history.rows] == [
        ("decks", 0.1),
        ("decks", 0.001),
        ("walls", 0.1),
        ("walls", 0.001),
    ]
    for rows in (walls, decks):
        assert roc_auc_score(rows.labels, logits_of(both, rows.features)) > 0.75
    alone = fit_probe({"walls": walls}, probe(), TrainingHistory(tmp_path / "alone", ignore))
    assert roc_auc_score(decks.labels, logits_of(alone, decks.features)) < 0.65
