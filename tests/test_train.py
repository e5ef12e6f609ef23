import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import embed, inference, train
from pipeline.classifier import Classifier
from pipeline.decision import choose_threshold
from pipeline.features import features_file, features_of, rows_file
from pipeline.images import IMAGES_FILE, INVENTORY_FILE
from pipeline.metrics import log_loss, scores
from pipeline.params import Params
from pipeline.tracking import NO_PART_OF_A_REPRO
from pipeline.train import checkpoint_folder, mosaics_of, rows_of, validation_scores
from pipeline.training_images import rows_learned_from, side_of

SHIPPED = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
PARAMS = {
    "datasets": {"ours": {"source": "ours"}, "theirs": {"source": "theirs"}},
    "ingest": {
        "max_files": 99,
        "max_total_mb": 99,
        "max_file_mb": 99,
        "max_expansion": 99,
        "max_image_megapixels": 9,
    },
    "contract": {
        "min_images_per_label": 1,
        "min_decodable_share": 1,
        "min_minority_share": 0,
        "min_size_px": 32,
        "max_size_px": 99,
        "max_copies_share": 1,
        "min_share_in_range": 1,
        "ranges": {},
    },
    "split": {
        "train_on": ["ours", "theirs"],
        "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "seed": 0,
        "copies": {"min_correlation": 1},
    },
    "backbones": {
        "small": {"architecture": "mobilenet-v2", "image_size_px": 32},
        "other": {"architecture": "efficientnet-lite0", "image_size_px": 64},
    },
    "candidates": {
        "probe": {
            "recipe": "probe",
            "backbone": "small",
            "n_components": 8,
            "strengths": [0.1, 0.01],
            "mosaics": {"of": ["ours"], "cells_a_side": [2, 3], "n_images": 12},
            "seed": 0,
        },
        "finetune": {
            "recipe": "finetune",
            "backbone": "small",
            "batch_size": 4,
            "dropout": 0.2,
            "augmentation": {"flips": "horizontal", "max_rotation_turns": 0.1},
            "head": {"optimizer": "adam", "learning_rate": 0.01, "max_epochs": 1, "patience_epochs": None},
            "tuning": {"optimizer": "adam", "learning_rate": 0.001, "max_epochs": 2, "patience_epochs": 2},
            "unfreeze_from": "block_16_expand",
            "kept_views": None,
            "seed": 0,
        },
    },
    "embed": {"dask_address": None},
    "select": {"outside_weight": 0.5},
    "decide": {
        "missed_crack_cost": 2,
        "false_alarm_cost": 1,
        "review_share_of_cracks": 0,
        "review_share_of_intact": 0,
    },
    **{name: SHIPPED[name] for name in sorted(NO_PART_OF_A_REPRO | {"register"})},
}
ANOTHER = {
    "small": "other",
    "ours": "theirs",
    "adam": "rmsprop",
    "horizontal": "vertical",
    "block_16_expand": "block_15_expand",
}


def write_dataset(folder, contents, sizes):
    """Write a data set as `ingest` leaves it."""
    folder.mkdir(parents=True)
    (folder / IMAGES_FILE).write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    offsets = np.cumsum([0, *lengths[:-1]])
    table = pd.DataFrame(sizes, columns=["height", "width"]).assign(offset=offsets, n_bytes=lengths)
    table.to_parquet(folder / INVENTORY_FILE)


@pytest.fixture(scope="module")
def data(tmp_path_factory, draw_tile, encode):
    """Two data sets of images of two sizes, cracked and intact in turn, and their manifest in no order."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for name, n, first_seed in (("ours", 24, 0), ("theirs", 12, 1000)):
        sizes = [(40, 40) if row % 3 else (32, 32) for row in range(n)]
        tiles = [draw_tile(first_seed + row, cracked=row % 2 == 0, size_px=size[0]) for row, size in enumerate(sizes)]
        write_dataset(folder / "datasets" / name, [encode(tile) for tile in tiles], sizes)
        splits = ["train", "train", "train", "train", "validation", "validation", "train", "train", "test", "test"]
        rows += [
            {
                "dataset": name,
                "row": row,
                "label": "intact" if row % 2 else "crack",
                "group": f"{name}-{row}",
                "split": splits[row % len(splits)],
            }
            for row in range(n)
        ]
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_parquet(folder / "manifest.parquet")
    return SimpleNamespace(datasets=folder / "datasets", manifest=folder / "manifest.parquet")


def test_a_side_holds_its_own_images_with_their_labels(data, draw_tile):
    side = side_of(pd.read_parquet(data.manifest), "validation", data.datasets)
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


def test_features_are_those_of_the_images_over_several_data_sets(data, tmp_path):
    manifest = pd.read_parquet(data.manifest)
    for name, sides in rows_learned_from(manifest).items():
        first, rows = {"ours": 0, "theirs": 1000}[name], sides.rows
        np.save(features_file(tmp_path, name), first + rows[:, None].astype(np.float32))
        np.save(rows_file(tmp_path, name), rows)
    side = side_of(manifest, "validation", data.datasets)
    np.testing.assert_array_equal(features_of(side.rows, tmp_path), [[4], [5], [14], [15], [1004], [1005]])


def another(value):
    if isinstance(value, str):
        return ANOTHER[value]
    if isinstance(value, list):
        return [another(item) for item in value]
    return {None: 1}.get(value, value / 2 if isinstance(value, float) else (value or 0) + 1)


def variants(section, path=()):
    """Yield the path of every setting of a candidate but its recipe, and the setting itself."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from variants(value, (*path, name))
        elif name != "recipe":
            yield (*path, name), value


def with_setting(path, value):
    settings = json.loads(json.dumps(PARAMS))
    section = settings
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return Params.model_validate(settings)


@pytest.mark.parametrize("name", ["probe", "finetune"])
def test_unfinished_work_has_another_folder_for_each_setting(name, tmp_path):
    manifest = tmp_path / "manifest"
    manifest.write_bytes(b"one split")
    changes = {("candidates", name, *path): another(value) for path, value in variants(PARAMS["candidates"][name])} | {
        ("backbones", "small", "architecture"): "efficientnet-lite0",
        ("backbones", "small", "image_size_px"): 33,
    }
    folders = [checkpoint_folder(tmp_path, manifest, Params.model_validate(PARAMS), name)]
    folders += [checkpoint_folder(tmp_path, manifest, with_setting(*change), name) for change in changes.items()]
    manifest.write_bytes(b"another split")
    folders += [checkpoint_folder(tmp_path, manifest, Params.model_validate(PARAMS), name)]
    assert len(folders) == len(changes) + 2 == (11 if name == "probe" else 20)
    assert len(set(folders)) == len(folders)


def test_unfinished_work_is_kept_when_only_another_candidate_or_the_costs_change(tmp_path):
    (tmp_path / "manifest").write_bytes(b"one split")
    folders = {
        checkpoint_folder(tmp_path, tmp_path / "manifest", params, "probe")
        for params in (
            Params.model_validate(PARAMS),
            with_setting(("candidates", "finetune", "seed"), 1),
            with_setting(("decide", "missed_crack_cost"), 9),
            with_setting(("backbones", "other", "image_size_px"), 96),
        )
    }
    assert len(folders) == 1


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A probe on cached features, trained by the stage itself without a tracking store."""
    folder = tmp_path_factory.mktemp("trained")
    params = Params.model_validate(PARAMS)
    epochs = []
    manifest = pd.read_parquet(data.manifest)
    embed.run(params.backbones["small"], manifest, data.datasets, folder / "embedding", folder / "features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "live_run", lambda *_: nullcontext(lambda step, values: epochs.append(step)))
        train.run(
            params,
            "probe",
            datasets=data.datasets,
            manifest_path=data.manifest,
            features=folder / "features",
            checkpoints=folder / "checkpoints",
            out=folder / "model",
            scores_path=folder / "scores.json",
            history_path=folder / "history.csv",
        )
    validation = side_of(pd.read_parquet(data.manifest), "validation", data.datasets)
    return SimpleNamespace(
        folder=folder,
        epochs=epochs,
        scores=json.loads((folder / "scores.json").read_text()),
        classifier=Classifier.load(folder / "model"),
        validation=validation,
    )


@pytest.mark.slow
def test_the_exported_graph_has_the_scores_that_training_wrote(trained):
    labels = trained.validation.labels
    probabilities = trained.classifier.probabilities(trained.validation, progress="scoring")
    threshold = trained.classifier.decision.threshold
    loss = log_loss(labels, probabilities)
    expected = {"selection_loss": loss, "log_loss": loss, "log_loss_in_domain": loss}
    expected |= scores(labels, probabilities, threshold)
    assert {name: trained.scores[name] for name in expected} == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_the_threshold_follows_the_costs_on_validation(trained):
    probabilities = trained.classifier.probabilities(trained.validation, progress="scoring").astype(np.float64)
    expected = choose_threshold(trained.validation.labels, probabilities, Params.model_validate(PARAMS).decide)
    assert trained.classifier.decision.threshold == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_history_has_a_row_for_each_head_and_strength_which_was_also_sent_live(trained):
    history = pd.read_csv(trained.folder / "history.csv")
    assert history["step"].tolist() == trained.epochs == [0, 1, 2, 3]
    assert history["phase"].tolist() == ["ours", "ours", "theirs", "theirs"]
    assert history["strength"].tolist() == [0.1, 0.01, 0.1, 0.01]
    assert set(history) == {"step", "phase", "epoch", "strength", "loss", "val_loss", "accuracy", "val_accuracy"}


def test_candidates_are_compared_by_both_losses_weighted_where_photos_are_lent(data):
    validation = side_of(pd.read_parquet(data.manifest), "validation", data.datasets)
    settings = json.loads(json.dumps(PARAMS))
    settings["split"]["train_on"] = ["ours"]  # so that the two images of "theirs" are lent
    settings["select"]["outside_weight"] = 0.25
    probabilities = np.array([0.9, 0.1, 0.9, 0.1, 0.5, 0.5])
    found = validation_scores(validation, probabilities, 0.5, Params.model_validate(settings))
    assert found["log_loss_in_domain"] == pytest.approx(-np.log(0.9))
    assert found["log_loss_outside"] == pytest.approx(np.log(2))
    assert found["selection_loss"] == pytest.approx(0.75 * -np.log(0.9) + 0.25 * np.log(2))


def test_mosaics_are_composed_of_the_chosen_training_images_alone(data, monkeypatch):
    train_side = side_of(pd.read_parquet(data.manifest), "train", data.datasets)
    seen = []
    monkeypatch.setattr(train_side, "pixels", lambda position: seen.append(position) or np.zeros((40, 40, 3), np.uint8))
    chosen = np.arange(1, len(train_side) - 1)
    wanted = Params.model_validate(PARAMS).candidates["probe"].mosaics
    mosaics = mosaics_of(train_side, chosen, chosen // 2 % 3, wanted, 32, seed=0)
    assert len(mosaics.labels) == 2 * 12
    assert seen == chosen.tolist()


@pytest.mark.slow
def test_each_head_learns_from_its_data_set_and_from_the_mosaics_and_turned_images_that_params_ask_for(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.traces.trace", lambda pixels, size_px: np.eye(size_px, dtype=bool))
    train_side = side_of(pd.read_parquet(data.manifest), "train", data.datasets)
    settings = json.loads(json.dumps(PARAMS))
    settings["candidates"]["probe"]["turn"] = ["theirs"]
    settings["candidates"]["probe"]["traced"] = {"of": ["ours"], "cells_a_side": [2], "n_images": 12}
    params = Params.model_validate(settings)
    backbone = params.backbones["small"]
    manifest = pd.read_parquet(data.manifest)
    embed.run(backbone, manifest, data.datasets, tmp_path / "unfinished", tmp_path / "features")
    real, precisions = inference.Embedder.features, set()

    def watched(self, images, *, for_training):
        precisions.add(for_training)
        return real(self, images, for_training=for_training)

    monkeypatch.setattr(inference.Embedder, "features", watched)
    rows = rows_of(backbone, params.candidates["probe"], train_side, tmp_path / "features", tmp_path / "more")
    assert precisions == {True}
    sizes = train_side.rows["dataset"].value_counts()
    assert list(rows) == ["ours", "ours, traced", "theirs"]
    ours, traced, theirs = rows.values()
    assert pd.Series(ours.sources).value_counts().to_dict() == {"ours": sizes["ours"], "mosaics": 24}
    assert pd.Series(traced.sources).value_counts().to_dict() == {"ours": sizes["ours"], "traced": 12}
    assert not np.array_equal(traced.features[-12:], ours.features[-12:])
    assert pd.Series(theirs.sources).value_counts().to_dict() == {"theirs": 8 * sizes["theirs"]}
    labels = train_side.labels[(train_side.rows["dataset"] == "theirs").to_numpy()]
    np.testing.assert_array_equal(theirs.labels, np.tile(labels, 8))
    np.testing.assert_array_equal(theirs.folds, np.tile(theirs.folds[: len(labels)], 8))
    plain = theirs.features[: len(labels)].astype(float)
    for turned in np.split(theirs.features.astype(float), 8)[1:]:
        assert 0 < np.abs(turned - plain).mean() < 0.5 * plain.std()  # the same image, seen from another side


@pytest.mark.slow
def test_nothing_unfinished_is_left_after_a_training(trained):
    assert list((trained.folder / "checkpoints").iterdir()) == []
    assert sorted(path.name for path in (trained.folder / "model").iterdir()) == ["decision.json", "model.keras"]
    assert not list(trained.folder.rglob("*.partial"))
