import json

import numpy as np
import pandas as pd
import pytest
from two_datasets import PARAMS

from pipeline import embed
from pipeline.data.training_images import images_of_side
from pipeline.errors import CracksError
from pipeline.params import Params
from pipeline.training import embedder
from pipeline.training.probe import N_FOLDS, assign_folds, images_by_head, rows_by_head


@pytest.mark.slow
def test_each_head_is_trained_on_its_data_set_and_the_mosaics_and_orientations_in_params(
    two_datasets, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "pipeline.training.hairline_cracks.extract_crack_line", lambda pixels, size_px: np.eye(size_px, dtype=bool)
    )
    train_side = images_of_side(pd.read_parquet(two_datasets.manifest), "train", two_datasets.datasets)
    settings = json.loads(json.dumps(PARAMS))
    settings["candidates"]["probe"]["orientations"] = ["theirs"]
    settings["candidates"]["probe"]["hairline_mosaics"] = {"of": ["ours"], "cells_a_side": [2], "n_images": 12}
    params = Params.model_validate(settings)
    backbone = params.backbones["small"]
    manifest = pd.read_parquet(two_datasets.manifest)
    embed.run(backbone, manifest, two_datasets.datasets, tmp_path / "unfinished", tmp_path / "features")
    real, precisions = embedder.Embedder.features, set()

    def monitored(self, images, *, for_training):
        precisions.add(for_training)
        return real(self, images, for_training=for_training)

    monkeypatch.setattr(embedder.Embedder, "features", monitored)
    rows = rows_by_head(backbone, params.candidates["probe"], train_side, tmp_path / "features", tmp_path / "more")
    assert precisions == {True}
    sizes = train_side.rows["dataset"].value_counts()
    assert list(rows) == ["ours", "ours, hairlines", "theirs"]
    ours, hairlines, theirs = rows.values()
    assert pd.Series(ours.sources).value_counts().to_dict() == {"ours": sizes["ours"], "mosaics": 24}
    assert pd.Series(hairlines.sources).value_counts().to_dict() == {"ours": sizes["ours"], "hairline_mosaics": 12}
    assert not np.array_equal(hairlines.features[-12:], ours.features[-12:])
    assert pd.Series(theirs.sources).value_counts().to_dict() == {"theirs": 8 * sizes["theirs"]}
    labels = train_side.labels[(train_side.rows["dataset"] == "theirs").to_numpy()]
    np.testing.assert_array_equal(theirs.labels, np.tile(labels, 8))
    np.testing.assert_array_equal(theirs.folds, np.tile(theirs.folds[: len(labels)], 8))
    plain = theirs.features[: len(labels)].astype(float)
    for turned in np.split(theirs.features.astype(float), 8)[1:]:
        assert 0 < np.abs(turned - plain).mean() < 0.5 * plain.std()  # the same image, seen from another side


def positions_by_head(names, labels, groups):
    found = images_by_head(np.array(names), np.array(labels), np.array(groups))
    return {name: positions.tolist() for name, positions in found.items()}


def test_a_data_set_with_too_few_groups_is_merged_with_the_largest_that_has_enough():
    names = ["large"] * 12 + ["medium"] * 8 + ["few"] * 4 + ["cracks"] * 20
    labels = [row % 2 == 0 for row in range(24)] + [True] * 20
    groups = [f"{name}-{row // (8 if name == 'few' else 1)}" for row, name in enumerate(names)]
    assert positions_by_head(names, labels, groups) == {
        "large": [*range(12), *range(20, 44)],
        "medium": list(range(12, 20)),
    }


def test_data_sets_of_one_label_each_are_merged():
    names, groups = ["cracks"] * 5 + ["intact"] * 6, [str(row) for row in range(11)]
    labels = [name == "cracks" for name in names]
    assert positions_by_head(names, labels, groups) == {"intact": list(range(11))}


def test_groups_stay_together_in_a_fold_and_each_fold_has_both_labels():
    labels = np.arange(60) % 2 == 0
    groups = np.array([f"{'c' if label else 'i'}{number // 6}" for number, label in enumerate(labels.tolist())])
    folds = assign_folds(labels, groups)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert all(len(set(labels[folds == fold])) == 2 for fold in range(N_FOLDS))


def test_too_few_groups_of_a_label_are_refused():
    labels = np.array([True, True, False, False, False, False])
    groups = np.array(["a", "b", "c", "d", "e", "f"])
    with pytest.raises(CracksError, match=r"train side has 2 groups of crack, but a probe needs 3 .* kind finetune"):
        assign_folds(labels, groups)
