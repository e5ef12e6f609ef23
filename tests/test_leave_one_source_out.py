"""Sources that a model was not trained on: what they are, their summary, and the trainings without each of them."""

import json
import logging

import pandas as pd
import pytest
from tiny_conv_head import CONV_HEAD
from two_datasets import PARAMS, write_dataset

from benchmarks.leave_one_source_out import validation_photos
from pipeline import embed, leave_one_source_out
from pipeline.errors import CracksError
from pipeline.evaluation.unseen_sources import AVERAGED, sources_of, summarise_sources, too_few
from pipeline.params import Params
from pipeline.training import candidate as candidate_training
from pipeline.training import embedder

SIDES = ["train", "train", "validation", "train", "test"]
SURFACES = {"ours": ["Decks", "Walls", "Corner"], "theirs": [""]}


def scores(auroc, n=100, prevalence=0.5, n_groups=10):
    return {"n": n, "prevalence": prevalence, "n_groups": n_groups, **dict.fromkeys(AVERAGED, 0.5), "auroc": auroc}


def test_a_source_is_a_surface_of_a_data_set_or_all_of_one_without_surfaces():
    manifest = pd.DataFrame({"dataset": ["a", "a", "a", "b", "c"], "slice": ["Walls", "Decks", "", "Walls", ""]})
    assert sources_of(manifest).tolist() == ["a/Walls", "a/Decks", "a", "b", "c"]


def test_the_mean_and_the_worst_of_a_hand_worked_example():
    left_out = {"scores": {"metu": scores(0.99), "sdnet/Decks": scores(0.81)}, "not_measured": {"sdnet/Roof": "few"}}
    found = summarise_sources(left_out, {"bridge": scores(0.9), "tiny": scores(0.1, n=30, prevalence=0.3)})
    assert list(found["scores"]) == ["metu", "sdnet/Decks", "bridge"]
    assert found["mean"]["auroc"] == pytest.approx(0.9)
    assert found["mean"]["ece"] == 0.5
    assert found["worst"] == "sdnet/Decks"
    assert list(found["not_measured"]) == ["sdnet/Roof", "tiny"]
    assert found["not_measured"]["tiny"].startswith("9 cracked and 21 intact images of 10 photos")


def test_without_a_source_there_is_no_mean_and_no_worst():
    nothing = {"scores": {}, "not_measured": {}}
    assert summarise_sources(nothing, {}) == {**nothing, "mean": {}, "worst": None}


@pytest.mark.parametrize(("counts", "is_scored"), [((20, 20, 5), True), ((19, 50, 5), False), ((50, 20, 4), False)])
def test_a_source_is_scored_with_enough_images_of_both_labels_and_enough_photos(counts, is_scored):
    assert (too_few(*counts) is None) == is_scored


def test_validation_photos_are_complete_blocks_of_neighbouring_numbers():
    photos = pd.Series([f"{number:03}" for number in range(70)]).repeat(2)
    expected = [*range(8, 16), *range(40, 48)]
    assert validation_photos(photos) == [f"{number:03}" for number in expected]


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory, draw_tile, encode):
    """A folder with two data sets, of which one has two surfaces and a third of few images, and their manifest."""
    folder, rows = tmp_path_factory.mktemp("surfaces"), []
    for name, surfaces in SURFACES.items():
        names = [surface for surface in surfaces for _ in range(8 if surface == "Corner" else 40)]
        tiles = [draw_tile(len(rows) + row, cracked=row % 2 == 0, size_px=32) for row in range(len(names))]
        write_dataset(folder / "datasets" / name, [encode(tile) for tile in tiles], [(32, 32)] * len(tiles))
        rows += [
            {"dataset": name, "row": row, "label": "intact" if row % 2 else "crack", "slice": surface,
             "group": f"{name}-{row // 2}", "split": SIDES[row // 2 % len(SIDES)]}
            for row, surface in enumerate(names)
        ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "manifest.parquet")
    return folder


def run_stage(surfaces, folder, candidate, **changes):
    """Run the stage with this candidate, which is the best of one; return what it writes."""
    settings = {"evaluate": {"leave_one_source_out": True}, "candidates": {"it": candidate}} | changes
    params = Params.model_validate(PARAMS | settings)
    (folder / "candidates").mkdir(exist_ok=True)
    (folder / "candidates" / "it.json").write_text(json.dumps({"selection_loss": 0.1}))
    features, manifest = folder / "features" / "small", pd.read_parquet(surfaces / "manifest.parquet")
    if candidate["kind"] == "probe" and not features.exists():
        embed.run(params.backbones["small"], manifest, surfaces / "datasets", folder / "embedding", features)
    leave_one_source_out.run(
        params,
        datasets=surfaces / "datasets",
        manifest=surfaces / "manifest.parquet",
        features=folder / "features",
        candidates=folder / "candidates",
        checkpoints=folder / "checkpoints",
        out=folder / "sources.json",
    )
    return json.loads((folder / "sources.json").read_text())


CONV = CONV_HEAD.model_dump() | {"n_epochs": 2}
PROBE = {name: value for name, value in PARAMS["candidates"]["probe"].items() if name != "mosaics"}


class KilledError(Exception):
    """Simulates the end of the process."""


@pytest.mark.slow
@pytest.mark.parametrize("candidate", [PROBE, CONV], ids=lambda candidate: candidate["kind"])
def test_each_source_is_scored_by_a_model_of_the_others_and_one_that_is_done_is_not_trained_again(
    surfaces, tmp_path, monkeypatch, caplog, candidate
):
    real_training, real_activations = candidate_training.train_candidate, embedder.compute_all
    trained_on, n_computed = [], []

    def train(params, name, train_side, validation, *rest):
        if len(trained_on) == 1 and not n_killed:
            n_killed.append(1)
            raise KilledError("at the second source")
        trained_on.append((train_side.rows, validation.rows))
        return real_training(params, name, train_side, validation, *rest)

    def compute(network, images, shape):
        n_computed.append(len(images.sizes))
        return real_activations(network, images, shape)

    n_killed: list[int] = []
    monkeypatch.setattr(candidate_training, "train_candidate", train)
    monkeypatch.setattr("pipeline.training.activation_cache.compute_all", compute)
    caplog.set_level(logging.INFO)
    with pytest.raises(KilledError):
        run_stage(surfaces, tmp_path, candidate)
    found = run_stage(surfaces, tmp_path, candidate)
    manifest = pd.read_parquet(surfaces / "manifest.parquet")
    assert list(found["scores"]) == ["ours/Decks", "ours/Walls", "theirs"]
    assert len(trained_on) == 3  # the first of them once, although the stage ran twice
    for source, sides in zip(found["scores"], trained_on, strict=True):
        left_out = manifest[sources_of(manifest) == source]
        for rows, side in zip(sides, ("train", "validation"), strict=True):
            others = manifest[(sources_of(manifest) != source) & (manifest["split"] == side)]
            assert sorted(rows["group"]) == sorted(others["group"])
        assert found["scores"][source]["n"] == len(left_out)
        assert found["scores"][source]["n_groups"] == left_out["group"].nunique()
        assert 0 <= found["scores"][source]["missed_at_5_percent"] <= 1
    assert found["not_measured"]["ours/Corner"].startswith("4 cracked and 4 intact images of 4 photos or groups")
    n_train, n_validation = ((manifest["split"] == side).sum() for side in ("train", "validation"))
    # once for all trainings; those on the validation side are also augmented
    assert sum(n_computed) == (n_train + 2 * n_validation if candidate is CONV else 0)
    assert "Source 3 of 4, ours/Walls, is left out: training on the others" in caplog.text
    assert not (tmp_path / "checkpoints").exists()


def test_without_the_parameter_nothing_is_trained(surfaces, tmp_path):
    off = {"evaluate": {"leave_one_source_out": False}}
    assert run_stage(surfaces, tmp_path, CONV, **off) == {"scores": {}, "not_measured": {}}


def test_the_only_source_that_is_trained_on_cannot_be_left_out(surfaces, tmp_path):
    rows = pd.read_parquet(surfaces / "manifest.parquet")
    only = rows[rows["dataset"] == "theirs"]
    found = leave_one_source_out.scores_by_source(
        Params.model_validate(PARAMS), "probe", only, surfaces / "datasets", tmp_path, tmp_path
    )
    assert found["scores"] == {}
    assert found["not_measured"] == {"theirs": "on the train side, the other sources lack cracked or intact images"}


def test_an_error_other_than_too_few_images_ends_the_stage_and_is_no_source_that_was_not_measured(
    surfaces, tmp_path, monkeypatch
):
    def train(*_):
        raise CracksError("The ImageNet weights of efficientnet-lite0 are not installed.")

    monkeypatch.setattr(candidate_training, "train_candidate", train)
    with pytest.raises(CracksError, match="not installed"):
        run_stage(surfaces, tmp_path, CONV)
    assert not (tmp_path / "sources.json").exists()
