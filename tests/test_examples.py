import numpy as np
from packed_greys import greys_scored, write_greys

from pipeline.evaluation.examples import N_PER_KIND, occlusion_overlay, pictures_of, random_predictions


def test_each_row_has_its_own_picture(tmp_path, encode):
    write_greys(tmp_path / "ours", [20 * row for row in range(6)], encode)
    rows = greys_scored(*[("crack", 0.1 * row) for row in range(6)]).iloc[[1, 0, 4, 3]]
    pictures = list(pictures_of(rows, tmp_path))
    assert [(picture.path, picture.label, picture.probability) for picture in pictures] == [
        (f"{row}.png", "crack", 0.1 * row) for row in (1, 0, 4, 3)
    ]
    assert [int(picture.pixels.max()) for picture in pictures] == [20, 0, 80, 60]
    assert all(picture.overlay is None for picture in pictures)


def test_a_picture_with_an_occlusion_map_has_an_overlay(tmp_path, encode):
    write_greys(tmp_path / "ours", [30, 60], encode)
    overlay = np.zeros((7, 7))
    overlay[0, 6] = 2.0
    rows = greys_scored(("crack", 0.1), ("intact", 0.9)).assign(occlusion_map=[overlay.ravel(), 0 * overlay.ravel()])
    first, second = pictures_of(rows, tmp_path)
    np.testing.assert_array_equal(first.overlay, occlusion_overlay(first.pixels, overlay))
    np.testing.assert_array_equal(second.overlay, second.pixels)  # nothing depends on anything: plain grey


def test_random_predictions_are_first_right_then_wrong_and_reproducible():
    rows = [("crack", 0.9)] * 20 + [("intact", 0.1)] * 20 + [("crack", 0.1), ("intact", 0.9), ("crack", 0.2)]
    shown, again = (random_predictions(greys_scored(*rows), 0.5) for _ in range(2))
    paths = shown["path"].tolist()
    assert again["path"].tolist() == paths
    assert len(set(paths)) == N_PER_KIND + 3
    assert set(paths[N_PER_KIND:]) == {"40.png", "41.png", "42.png"}
    assert set(shown["label"][:N_PER_KIND]) == {"crack", "intact"}
