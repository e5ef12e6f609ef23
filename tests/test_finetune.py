import json
import shutil
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from interrupted_training import KilledError, Tiles, ignore

from pipeline.errors import CracksError
from pipeline.models.backbones import build_backbone
from pipeline.params import Backbone, Finetune
from pipeline.training import activation_cache
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.embedder import compute_all
from pipeline.training.finetune import fit_finetune

SIZE_PX = 32
BACKBONE = Backbone(architecture="mobilenet-v2", image_size_px=SIZE_PX)
UNFROZEN_FROM = "block_16_expand"


def finetune(**changes):
    settings = {
        "kind": "finetune",
        "backbone": "any",
        "batch_size": 4,
        "dropout": 0.2,
        "augmentation": {"flips": "horizontal", "max_rotation_turns": 0.1},
        "head": {"optimizer": "adam", "learning_rate": 0.01, "max_epochs": 1, "patience_epochs": None},
        "tuning": {"optimizer": "rmsprop", "learning_rate": 0.001, "max_epochs": 2, "patience_epochs": 2},
        "unfreeze_from": UNFROZEN_FROM,
        "cached_augmentations": None,
        "seed": 0,
    }
    return Finetune(**settings | changes)


def test_an_unknown_layer_is_refused_before_anything_is_trained(tmp_path, draw_tile):
    tiles = Tiles(draw_tile, range(2), SIZE_PX)
    history = TrainingHistory(tmp_path / "history", ignore)
    with pytest.raises(CracksError, match=r"unfreeze_from is 'block_17'.* mobilenet-v2 has no such.*block_16_expand,"):
        fit_finetune(BACKBONE, tiles, tiles, finetune(unfreeze_from="block_17"), history)
    assert history.rows == []


@pytest.fixture(scope="module", params=[None, 2], ids=["images", "kept views"])
def tuned(tmp_path_factory, draw_tile, request):
    """A fine-tuning that is killed at the end of the second epoch of its second phase, and then resumed."""
    folder = tmp_path_factory.mktemp("unfinished")
    settings = finetune(cached_augmentations=request.param)
    train, validation = Tiles(draw_tile, range(8), SIZE_PX), Tiles(draw_tile, range(50, 54), SIZE_PX)
    killed_steps, resumed_steps = [], []

    def die_at_the_third(step, values):
        killed_steps.append(step)
        if step == 2:
            raise KilledError("at the third epoch")

    history = TrainingHistory(folder / "history.jsonl", die_at_the_third)
    with pytest.raises(KilledError, match="at the third epoch"):
        fit_finetune(BACKBONE, train, validation, settings, history)
    history = TrainingHistory(folder / "history.jsonl", lambda step, values: resumed_steps.append(step))
    classifier = fit_finetune(BACKBONE, train, validation, settings, history)
    undisturbed = TrainingHistory(tmp_path_factory.mktemp("undisturbed") / "history.jsonl", ignore)
    return SimpleNamespace(
        undisturbed=fit_finetune(BACKBONE, train, validation, settings, undisturbed),
        undisturbed_history=undisturbed,
        killed_steps=killed_steps,
        resumed_steps=resumed_steps,
        history=history,
        classifier=classifier,
        validation=validation,
        network=classifier.get_layer("mobilenet-v2"),
        original=build_backbone("mobilenet-v2"),
    )


def weights_by_layer(network):
    return {layer.name: layer.get_weights() for layer in network.layers if layer.weights}


@pytest.mark.slow
def test_a_killed_fine_tuning_resumes_at_the_unfinished_epoch(tuned):
    assert tuned.killed_steps == [0, 1, 2]
    assert tuned.resumed_steps == [2]
    assert [(row["step"], row["phase"], row["epoch"]) for row in tuned.history.rows] == [
        (0, "head", 0),
        (1, "tuning", 0),
        (2, "tuning", 1),
    ]


@pytest.mark.slow
def test_a_resumed_fine_tuning_gives_the_same_result_as_an_uninterrupted_one(tuned):
    for one, other in zip(tuned.classifier.get_weights(), tuned.undisturbed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    losses = [[row["val_loss"] for row in history.rows] for history in (tuned.history, tuned.undisturbed_history)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.fixture(scope="module")
def killed_twice(tmp_path_factory, draw_tile):
    """A fine-tuning whose head has stopped to improve when it is killed, and which is killed again while tuning."""
    path = tmp_path_factory.mktemp("killed") / "history.jsonl"
    train, validation, n_computed = Tiles(draw_tile, range(8), SIZE_PX), Tiles(draw_tile, range(50, 54), SIZE_PX), []
    head = {"optimizer": "adam", "learning_rate": 0.01, "max_epochs": 9, "patience_epochs": 2}

    def counting(compute, images, shape):
        n_computed.append(len(images.sizes))
        return compute_all(compute, images, shape)

    def fit(n_epochs):
        reported = []

        def report(step, values):
            if len(reported) == n_epochs:
                raise KilledError(f"after {n_epochs} epochs")
            reported.append(step)

        history = TrainingHistory(path, report)
        with suppress(KilledError):
            fit_finetune(BACKBONE, train, validation, finetune(head=head, cached_augmentations=3), history)
        return history.rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation_cache, "compute_all", counting)
        first, second = fit(2)
        path.write_text("".join(json.dumps(row) + "\n" for row in (first | {"val_loss": 0}, second)))
        shutil.copy(path.with_name("head-2.weights.h5"), path.with_name("head-1.weights.h5"))
        return SimpleNamespace(rows=[fit(2), fit(1)], n_computed=n_computed)


@pytest.mark.slow
def test_early_stopping_counts_the_epochs_before_a_kill(killed_twice):
    after_one_more_of_the_head, after_the_second_kill = killed_twice.rows
    assert [row["phase"] for row in after_one_more_of_the_head] == ["head"] * 3 + ["tuning"]
    assert [row["phase"] for row in after_the_second_kill] == ["head"] * 3 + ["tuning"] * 2


@pytest.mark.slow
def test_frozen_layers_are_computed_once_for_each_view_and_not_again_after_a_kill(killed_twice):
    assert killed_twice.n_computed == [3 * 8, 4]


@pytest.mark.slow
def test_layers_below_unfreeze_from_do_not_change_and_convolutions_from_there_on_do(tuned):
    original = weights_by_layer(tuned.original)
    changed = {
        name
        for name, weights in weights_by_layer(tuned.network).items()
        if not all(np.array_equal(one, other) for one, other in zip(weights, original[name], strict=True))
    }
    names = list(original)
    assert changed == {name for name in names[names.index(UNFROZEN_FROM) :] if not name.endswith("_bn")}


@pytest.mark.slow
def test_normalisations_keep_their_moving_statistics(tuned):
    after = weights_by_layer(tuned.network)
    for name, weights in weights_by_layer(tuned.original).items():
        if name.endswith("_bn"):
            for one, other in zip(weights, after[name], strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.slow
def test_the_returned_classifier_has_the_loss_of_the_best_epoch_of_tuning(tuned):
    batch = np.stack([tuned.validation.pixels(position) for position in range(len(tuned.validation))])
    logits = np.array(tuned.classifier(batch)["logit"])[:, 0]
    loss = np.logaddexp(0, np.where(tuned.validation.labels, -logits, logits)).mean()
    assert loss == pytest.approx(tuned.history.rows[-1]["val_loss"], rel=1e-4)
