from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pictures import Pictures
from two_datasets import PARAMS

from pipeline.data.training_images import images_of_side
from pipeline.errors import CracksError
from pipeline.params import Params
from pipeline.training.hairline_cracks import CrackLines
from pipeline.training.mosaics import Mosaics, Sources, build_mosaics, compose, extend_by_mirroring, shrink, vary

DARK, GREY = 60, 130


def cells(n, value=GREY):
    return np.full((n, 16, 16, 3), value, np.uint8)


def cracked_cells(n):
    drawn = cells(n)
    drawn[:, 6:10] = 0
    return drawn


@pytest.fixture
def sources():
    """Eight cracked and eight intact cells in two folds; the intact ones of fold 1 are dark."""
    return Sources(
        cells=np.concatenate([cracked_cells(8), cells(4), cells(4, DARK)]),
        labels=np.arange(16) < 8,
        folds=np.array([0] * 4 + [1] * 4 + [0] * 4 + [1] * 4),
    )


@pytest.fixture
def hairline_sources(sources):
    """The same, with a crack to draw for each fold."""
    return replace(sources, crack_lines=CrackLines(np.stack([line_at(24), line_at(12)]), np.array([0, 1])))


def line_at(row):
    line = np.zeros((48, 48), bool)
    line[row] = True
    return line


def mosaics(sources, n_images=12, seed=0, sides=(2, 3)):
    return Mosaics(sources, sides, n_images, 48, seed=seed)


@pytest.mark.parametrize(("labels", "few"), [([False] * 16, "cracked"), ([True] * 16, "intact")])
def test_sources_of_one_label_are_refused(sources, labels, few):
    with pytest.raises(CracksError, match=f"too few {few} ones .* under mosaics.of"):
        mosaics(replace(sources, labels=np.array(labels)))


def test_sources_without_a_clear_crack_in_each_fold_are_refused(hairline_sources):
    one = CrackLines(hairline_sources.crack_lines.lines[:1], hairline_sources.crack_lines.folds[:1])
    with pytest.raises(CracksError, match=r"Only 1 cracks .* under hairline_mosaics\.of"):
        mosaics(replace(hairline_sources, crack_lines=one))


def test_images_are_shrunk_by_area_averaging():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4] = 200
    image[0, 4:] = 80
    small = shrink(Pictures([image, image + 10]), np.array([1, 0]), 2)
    np.testing.assert_array_equal(small[1, :, :, 0], [[200, 20], [0, 0]])
    np.testing.assert_array_equal(small[0, :, :, 0], [[210, 30], [10, 10]])


def test_intact_cells_of_different_colours_make_a_surface_without_seams():
    mixed = np.concatenate([cells(1, value) for value in (100, 150, 200, 50)])
    mosaic = compose(mixed, 2, 32, np.random.default_rng(0))
    np.testing.assert_allclose(mosaic, 100, atol=1e-4)


def test_with_seams_each_cell_keeps_its_colour():
    mixed = np.concatenate([cells(1, value) for value in (100, 150, 200, 50)])
    mosaic = compose(mixed, 2, 32, np.random.default_rng(0), with_seams=True)
    np.testing.assert_array_equal(mosaic[[8, 8, 24, 24], [8, 24, 8, 24], 0], [100, 150, 200, 50])


def test_a_size_that_the_cells_do_not_divide_is_filled_to_its_edges():
    mosaic = compose(cells(9, 90), 3, 32, np.random.default_rng(0))
    assert mosaic.shape == (32, 32, 3)
    np.testing.assert_allclose(mosaic, 90, atol=1e-4)


def test_a_crack_stays_darker_than_its_surroundings_and_shrinks_with_its_cell():
    one_cracked = np.concatenate([cells(8), cracked_cells(1)])
    mosaic = compose(one_cracked, 3, 48, np.random.default_rng(0))
    assert (mosaic < 20).mean() == pytest.approx(4 / 16 / 9, rel=0.1)


def test_cracked_and_intact_mosaics_alternate_for_each_number_of_cells(sources):
    drawn = mosaics(sources)
    assert drawn.labels.tolist() == [True, False] * 12
    assert drawn.sizes.tolist() == [[48, 48]] * 24


def test_a_cracked_mosaic_has_a_crack_and_an_intact_one_has_none(sources, monkeypatch):
    monkeypatch.setattr("pipeline.training.mosaics.vary", lambda image, rng: image)
    drawn = mosaics(sources, n_images=24)
    has_crack = [drawn.pixels(position).std() > 5 for position in range(48)]
    assert has_crack == drawn.labels.tolist()


def test_a_synthetic_crack_is_drawn_across_intact_cells_of_the_fold(hairline_sources, monkeypatch):
    monkeypatch.setattr("pipeline.training.mosaics.vary", lambda image, rng: image)
    some = mosaics(hairline_sources)
    for position, (cracked, fold) in enumerate(zip(some.labels, some.folds, strict=True)):
        picture = some.pixels(position)
        sound = DARK if fold else GREY
        assert picture.max() == sound
        assert (picture.min() < sound - 1) == cracked
        assert picture.min() > 0.15 * sound  # a crack of a cell would be black


def test_the_drawn_crack_is_of_the_fold_of_the_mosaic(hairline_sources, monkeypatch):
    lines = []
    monkeypatch.setattr(
        "pipeline.training.mosaics.draw_hairline_crack", lambda surface, line, rng: lines.append(line) or surface
    )
    some = mosaics(hairline_sources)
    for position in range(24):
        some.pixels(position)
    expected = [line_at(12 if fold else 24) for fold in some.folds[::2]]
    np.testing.assert_array_equal(lines, expected)


def test_synthetic_cracks_are_drawn_on_cells_with_seams_and_on_mirrored_cells(hairline_sources, monkeypatch):
    kinds = []
    blank = np.zeros((48, 48, 3), np.float32)
    monkeypatch.setattr(
        "pipeline.training.mosaics.compose", lambda *_, with_seams: kinds.append(("seams", with_seams)) or blank
    )
    monkeypatch.setattr("pipeline.training.mosaics.extend_by_mirroring", lambda *_: kinds.append("mirrored") or blank)
    some = mosaics(hairline_sources, n_images=100)
    for position in range(200):
        some.pixels(position)
    assert set(kinds[::2]) == set(kinds[1::2]) == {("seams", True), "mirrored"}
    assert 70 < kinds.count("mirrored") < 130


def test_a_cell_extended_by_mirroring_has_no_seams():
    slope = np.repeat(np.arange(0, 240, 15, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
    for seed in range(8):
        surface = extend_by_mirroring(slope, 3, 47, np.random.default_rng(seed))
        assert surface.shape == (47, 47, 3)
        assert max(np.abs(np.diff(surface, axis=axis)).max() for axis in (0, 1)) <= 15
        assert surface.max() == 225


def test_all_cells_of_a_mosaic_are_of_its_fold(sources, monkeypatch):
    chosen = []
    monkeypatch.setattr(
        "pipeline.training.mosaics.compose",
        lambda cells, side, size_px, rng: chosen.append(cells) or np.zeros((8, 8, 3)),
    )
    drawn = mosaics(sources)
    for position in range(24):
        drawn.pixels(position)
    assert set(drawn.folds.tolist()) == {0, 1}
    for fold, cells_of_one, cracked in zip(drawn.folds, chosen, drawn.labels, strict=True):
        if not cracked:
            assert {int(value) for value in np.unique(cells_of_one)} == {DARK if fold else GREY}


def test_a_mosaic_depends_only_on_seed_and_position(sources):
    first, again, other = mosaics(sources), mosaics(sources), mosaics(sources, seed=1)
    first.pixels(3)
    np.testing.assert_array_equal(first.pixels(5), again.pixels(5))
    assert not np.array_equal(first.pixels(5), first.pixels(7))
    assert not np.array_equal(first.pixels(5), other.pixels(5))


def test_varied_images_stay_within_grey_levels_and_differ_by_camera_and_light():
    image = np.linspace(-40, 300, 48 * 48 * 3, dtype=np.float32).reshape(48, 48, 3)
    varied = [vary(image, np.random.default_rng(seed)) for seed in range(8)]
    assert all(one.dtype == np.uint8 and one.shape == image.shape for one in varied)
    assert len({float(one.mean()) for one in varied}) == 8
    assert len({float(one.std()) for one in varied}) == 8


def test_mosaics_are_composed_only_of_the_chosen_training_images(two_datasets, monkeypatch):
    train_side = images_of_side(pd.read_parquet(two_datasets.manifest), "train", two_datasets.datasets)
    seen = []
    monkeypatch.setattr(train_side, "pixels", lambda position: seen.append(position) or np.zeros((40, 40, 3), np.uint8))
    chosen = np.arange(1, len(train_side) - 1)
    wanted = Params.model_validate(PARAMS).candidates["probe"].mosaics
    mosaics = build_mosaics(train_side, chosen, chosen // 2 % 3, wanted, 32, seed=0)
    assert len(mosaics.labels) == 2 * 12
    assert seen == chosen.tolist()
