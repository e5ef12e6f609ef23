from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.crack_maps.overlay import overlay_picture
from pipeline.errors import CracksError
from pipeline.inference.out_of_distribution import (
    OutOfDistributionDetector,
    Surface,
    detector_projection,
    fit,
    missed_cracks,
)
from pipeline.inference.served import ServedModel
from pipeline.params import Map

PARAMS = Map(tile_px=48, overlap=0, model_mm_per_px=None)
DARK, LIGHT = 0, 255


@pytest.fixture(scope="module")
def model(dark_is_crack):
    return ServedModel.load(dark_is_crack)


@pytest.fixture(scope="module")
def mapper(model):
    return CrackMapper(model, PARAMS)


def light_photo(height, width):
    return np.full((height, width, 3), LIGHT, np.uint8)


def test_a_map_shows_where_the_crack_is(mapper):
    pixels = light_photo(96, 144)
    pixels[48:96, 96:144] = DARK
    tiles = mapper.map(pixels).tiles
    assert tiles[["row", "col", "x", "y", "size"]].to_numpy().tolist() == [
        [0, 0, 0, 0, 48], [0, 1, 48, 0, 48], [0, 2, 96, 0, 48],
        [1, 0, 0, 48, 48], [1, 1, 48, 48, 48], [1, 2, 96, 48, 48],
    ]  # fmt: skip
    assert tiles["label"].tolist() == ["intact"] * 5 + ["crack"]


def test_tiles_are_scored_exactly_as_images_of_their_own(mapper, model):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    for tile in mapper.map(pixels).tiles.itertuples():
        alone = pixels[None, tile.y : tile.y + tile.size, tile.x : tile.x + tile.size]
        assert tile.probability == pytest.approx(float(model.outputs(alone)["probability"][0]), abs=1e-6)


@pytest.mark.parametrize("overlap", [0, 0.5])
def test_a_dark_last_row_of_pixels_is_seen(model, overlap):
    pixels = light_photo(101, 144)
    pixels[-5:] = DARK
    tiles = CrackMapper(model, PARAMS.model_copy(update={"overlap": overlap})).map(pixels).tiles
    light = tiles["probability"].min()
    assert (tiles.loc[tiles["y"] == 53, "probability"] > 2 * light).all()


@settings(max_examples=25)
@given(st.integers(80, 180), st.integers(80, 180), st.floats(0, 0.8), st.sampled_from([0.2, 0.37, 1.0, 1.3]))
def test_tiles_stay_in_the_photo_at_every_scale(model, height, width, overlap, mm_per_px):
    params = Map(tile_px=40, overlap=overlap, model_mm_per_px=0.5)
    crack_map = CrackMapper(model, params).map(light_photo(height, width), mm_per_px)
    tiles = crack_map.tiles
    assert (tiles[["x", "y"]] >= 0).all(axis=None)
    assert (tiles["x"] + tiles["size"] <= width).all()
    assert (tiles["y"] + tiles["size"] <= height).all()
    assert crack_map.covered(np.ones(len(tiles), bool)).all()


def test_areas_are_of_the_photo_and_overlapping_tiles_count_once(model):
    pixels = light_photo(96, 192)
    pixels[:, :96] = DARK
    apart, overlapping = (
        CrackMapper(model, PARAMS.model_copy(update={"overlap": overlap})).map(pixels) for overlap in (0, 0.5)
    )
    assert apart.share_of_area("crack") == apart.share_of_area("intact") == 0.5
    assert apart.share_of_area("review") == 0
    assert overlapping.share_of_area("crack") == 0.5  # tiles over the middle are neither
    assert overlapping.share_of_area("review") == pytest.approx(4 / 12)  # 72..120 px, in cells of 16


def test_a_photo_of_one_pixel_is_refused_with_a_reason(mapper):
    with pytest.raises(CracksError, match=r"The photo has 1 x 1 px\. A side needs 32 px or more"):
        mapper.map(light_photo(1, 1))


def test_a_known_ground_resolution_resizes_the_photo(model):
    mapper = CrackMapper(model, PARAMS.model_copy(update={"model_mm_per_px": 0.5}))
    crack_map = mapper.map(light_photo(192, 192), mm_per_px=0.25)
    assert crack_map.tiles["size"].unique().tolist() == [96]
    assert len(crack_map.tiles) == 4
    assert crack_map.scale == "Resized 0.5 times, from 0.25 to the model's 0.5 mm per pixel."


def test_an_unknown_ground_resolution_is_stated(model, mapper):
    assert "trained on is unknown" in mapper.map(light_photo(40, 40), mm_per_px=0.25).scale
    known = CrackMapper(model, PARAMS.model_copy(update={"model_mm_per_px": 0.5}))
    assert known.map(light_photo(40, 40)).scale == "The ground resolution of the photo is unknown: it is not resized."


def test_a_ground_resolution_that_resizes_too_much_is_refused(model):
    mapper = CrackMapper(model, PARAMS.model_copy(update={"model_mm_per_px": 0.5}))
    for mm_per_px, times in ((100, 200), (0.1, 0.2)):
        with pytest.raises(CracksError, match=rf"would be resized {times} times .* Correct --mm-per-px"):
            mapper.map(light_photo(150, 150), mm_per_px=mm_per_px)


@pytest.fixture(scope="module")
def knowing(model, dark_is_crack):
    """The model with a detector that knows light grey images, and what it missed on them and elsewhere."""
    rng = np.random.default_rng(0)
    grey = [np.full((1, 40, 40, 3), level, np.uint8) for level in rng.integers(200, 256, 300)]
    images = np.concatenate([detector_projection(model.outputs(image)["features"]) for image in grey])
    knowing = ServedModel.load(dark_is_crack)
    knowing.detector = fit(images[::2], images[1::2], 0.05, (Surface("metu", 958, 4), Surface("piers", 20, 9, True)))
    return knowing


def test_out_of_distribution_tiles_are_for_review_whatever_their_probability(knowing):
    pixels = light_photo(48, 96)
    pixels[:, 48:] = (0, 0, 255)
    tiles = CrackMapper(knowing, PARAMS).map(pixels).tiles
    assert tiles["in_distribution"].tolist() == [True, False]
    assert tiles["label"].tolist() == ["intact", "review"]
    assert tiles["reason"].tolist() == ["", "unlike the training images"]


def test_a_map_says_that_the_misses_on_this_structure_are_not_known_before_it_says_what_was_missed_elsewhere(knowing):
    """The figure of test images that a photo merely looks like was taken for that of the photo."""
    pixels = light_photo(48, 96)
    pixels[:, 48:] = (0, 0, 255)
    assert CrackMapper(knowing, PARAMS).map(pixels).notes() == [
        "How many cracks are missed on structures like this one is not known; on external structures the model missed "
        "9 of 20 cracks (piers).",
        "An unmarked area may still have cracks.",
        "Crack lines are searched for in the likeliest tiles, and hairline cracks are missed: no line is no proof that "
        "there is no crack.",
        "On test images of its own training sources it missed 4 of 958 cracks (metu).",
        "1 of 2 tiles are unlike the training images: the model cannot judge them.",
        "The ground resolution of the images that the model was trained on is unknown: nothing is resized.",
    ]


def test_a_model_that_was_tested_on_its_own_sources_alone_says_so(knowing):
    detector = replace(knowing.detector, surfaces=(*knowing.detector.surfaces[:1], Surface("intact alone", 0, 0, True)))
    assert missed_cracks(detector)[0].endswith("on external structures the model was not tested.")
    assert missed_cracks(None) == ["It is not recorded how many cracks this model misses."]


@pytest.mark.parametrize(("n_rows", "n_for_review"), [(5, 19), (10, 20), (40, 24)])
def test_of_the_tiles_that_the_model_is_unsure_of_15_percent_or_20_are_for_review_the_likeliest_cracks(
    mapper, n_rows, n_for_review
):
    pixels = light_photo(n_rows * 48, 4 * 48)
    levels = np.linspace(95, 125, 4 * n_rows).reshape(n_rows, 4)  # the model is unsure of all of these
    pixels[:] = levels.repeat(48, axis=0).repeat(48, axis=1)[..., None]
    pixels[:48, :48] = DARK  # which it is sure of
    crack_map = mapper.map(pixels)
    n_undecided = 4 * n_rows - 1 - n_for_review
    expected = ["crack"] + ["review"] * n_for_review + ["undecided"] * n_undecided
    by_probability = crack_map.tiles.sort_values("probability", ascending=False, kind="stable")
    assert by_probability["label"].tolist() == expected
    assert set(crack_map.tiles.loc[1:, "reason"]) == {"unsure"}
    said = f"{n_undecided} of {4 * n_rows} tiles are undecided: the model is unsure of them"
    assert any(note.startswith(said) for note in crack_map.notes()) is (n_undecided > 0)


def test_the_budget_of_the_model_limits_what_is_for_review(model, dark_is_crack):
    frugal = ServedModel.load(dark_is_crack)
    frugal.decision = replace(model.decision, review_budget=0.1)
    pixels = light_photo(100 * 32, 4 * 32)
    pixels[:] = 115
    params = PARAMS.model_copy(update={"tile_px": 32})
    labels = [CrackMapper(one, params).map(pixels).tiles["label"] for one in (model, frugal)]
    assert [(of_one == "review").sum() for of_one in labels] == [60, 40]


def test_tiles_without_photo_are_left_out_and_shares_are_of_what_was_photographed(mapper):
    pixels = np.zeros((96, 192, 3), np.uint8)  # what is transparent is black, as in orthophotos
    pixels[:, 48:96] = LIGHT
    photographed = np.zeros((96, 192), bool)
    photographed[:, 48:120] = True
    crack_map = mapper.map(pixels, photographed=photographed)
    assert crack_map.tiles[["row", "col"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert crack_map.tiles["label"].tolist() == ["intact", "crack"] * 2
    assert crack_map.share_of_area("intact") == pytest.approx(48 / 72)
    assert crack_map.share_of_area("crack") == pytest.approx(24 / 72)
    assert "62.5 % of the picture is transparent: tiles without photo are left out." in crack_map.notes()
    with pytest.raises(CracksError, match="transparent everywhere"):
        mapper.map(pixels, photographed=np.zeros((96, 192), bool))


def test_a_saved_detector_is_the_same_when_it_is_loaded(tmp_path):
    rng = np.random.default_rng(0)
    known = fit(rng.normal(size=(200, 64)), rng.normal(size=(200, 64)), 0.1, (Surface("walls", 8, 1, True),))
    known.save(tmp_path / "known.npz")
    again = OutOfDistributionDetector.load(tmp_path / "known.npz")
    assert again.surfaces == known.surfaces
    fresh = rng.normal(size=(2000, 64))
    np.testing.assert_allclose(again.distances(fresh), known.distances(fresh), rtol=1e-4)
    assert 0.8 < (known.distances(fresh) <= known.limit).mean() < 0.97
    assert (known.distances(fresh + 3) > known.limit).all()


def test_intact_concrete_is_drawn_unchanged_and_a_crack_is_red(mapper):
    pixels = light_photo(48, 96)
    pixels[:, 48:] = (60, 60, 60)
    crack_map = mapper.map(pixels)
    picture = np.asarray(overlay_picture(pixels, crack_map))
    assert (picture[:48, :48] == LIGHT).all()
    red, green, blue = picture[24, 72].astype(int)
    assert red > green + 20
    assert red > blue + 20
    assert picture.shape[0] > 48  # the legend is below, it hides nothing


def test_a_tile_for_review_is_outlined_and_not_shaded(mapper):
    pixels = light_photo(48, 96)
    pixels[:, 48:] = 115
    crack_map = mapper.map(pixels)
    assert crack_map.tiles["label"].tolist() == ["intact", "review"]
    picture = np.asarray(overlay_picture(pixels, crack_map))
    assert (picture[1:47, 49:95] == 115).all()
    assert (picture[0, 48:96] == (40, 110, 255)).all()


@pytest.mark.parametrize("size", [(32, 32), (33, 700), (700, 33)])
def test_a_picture_of_any_shape_has_a_legend(mapper, size):
    pixels = light_photo(*size)
    assert overlay_picture(pixels, mapper.map(pixels)).width == size[1]
