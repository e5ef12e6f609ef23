"""Tests of how crack lines are found and measured."""

from itertools import count

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from pipeline.crack_lines.crack_line import CrackLine, Points, draw_mask
from pipeline.crack_lines.find_lines import find_lines, searched_area
from pipeline.crack_lines.tracer import Tracer, load_tracer
from pipeline.crack_lines.widths import measure_widths
from pipeline.data.images import Pixels
from pipeline.training.drawn_cracks import crack_course, draw_line, smooth_noise

SIZE = 512


@pytest.fixture(scope="module")
def tracer() -> Tracer:
    """Return the tracer that ships with the project."""
    return load_tracer()


def surface(seed: int = 0) -> np.ndarray:
    """Return concrete of middle grey with fine and coarse grain, (SIZE, SIZE)."""
    rng = np.random.default_rng(seed)
    coarse = gaussian_filter(rng.normal(0, 1, (SIZE, SIZE)), 6)
    return 150 + 5 * coarse / coarse.std() + gaussian_filter(rng.normal(0, 6, (SIZE, SIZE)), 0.7)


def photo_of(grey: np.ndarray) -> Pixels:
    """Return grey levels as an RGB photo."""
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def with_line(grey: np.ndarray, course: Points, width_px: float, depth: float = 0.5) -> np.ndarray:
    """Return a surface that a line of this width darkens by a share of its brightness, slightly blurred."""
    cover = draw_line(course, np.full(len(course), width_px), SIZE)
    return gaussian_filter(grey * (1 - depth * cover), 0.6)


def drawn_course(seed: int = 3) -> Points:
    """Return the course of a crack from the left to the right of a photo."""
    return crack_course(np.array([-20.0, 250.0]), 0.05, 560, 0.05, np.random.default_rng(seed))


def line_of(points: list[tuple[float, float]], width_px: float = 1.0) -> CrackLine:
    """Return a crack of one width."""
    return CrackLine(np.array(points, float), np.full(len(points), width_px), width_px, width_px, 1.0)


def test_a_drawn_crack_is_found_along_its_whole_course(tracer: Tracer) -> None:
    course = drawn_course()
    lines = find_lines(photo_of(with_line(surface(), course, 3.0)), None, tracer)
    found, truth = draw_mask(lines, (SIZE, SIZE)) > 0, draw_line(course, np.full(len(course), 1.0), SIZE) > 0.3
    assert np.quantile(distance_transform_edt(~found)[truth], 0.95) <= 2
    centres = np.concatenate([line.points for line in lines]).round().astype(int)
    assert np.quantile(distance_transform_edt(~truth)[centres[:, 1], centres[:, 0]], 0.95) <= 2


def test_a_search_ends_when_the_check_says_so(tracer: Tracer) -> None:
    photo = photo_of(with_line(surface(), drawn_course(), 3.0))

    class EndedError(Exception):
        pass

    def search(ended_at: int | None) -> int:
        """Search with a check that ends it at one of its calls, and return how often it was called."""
        calls = count(1)  # of several threads

        def check() -> None:
            if next(calls) == ended_at:
                raise EndedError

        find_lines(photo, None, tracer, check)
        return next(calls) - 1

    n_calls = search(None)
    assert n_calls > 5  # for windows of the photo and of the reduced one, and for regions
    for ended_at in range(1, n_calls + 1):
        with pytest.raises(EndedError):
            search(ended_at)


@pytest.mark.parametrize("width_px", [3.0, 6.0, 15.0])
def test_the_width_of_a_drawn_crack_is_measured_to_four_tenths_of_a_pixel(width_px: float, tracer: Tracer) -> None:
    line = find_lines(photo_of(with_line(surface(), drawn_course(), width_px)), None, tracer)[0]
    assert line.median_width_px == pytest.approx(width_px, abs=0.4)
    assert line.width_low_px <= line.median_width_px <= line.width_high_px
    assert line.width_high_px - line.width_low_px < width_px


def test_the_interval_holds_the_median_of_nearly_all_cracks_whose_width_varies() -> None:
    concrete, rng, held, spans = surface(), np.random.default_rng(0), [], []
    for seed in range(16):
        course = drawn_course(seed)[10:-10]
        widths = rng.uniform(4, 12) * np.exp(0.25 * smooth_noise(len(course), 3, rng))
        cover = draw_line(course, widths, SIZE)
        _, low, high = measure_widths(photo_of(gaussian_filter(concrete * (1 - 0.5 * cover), 0.6)), course)
        held.append(low <= np.median(widths) <= high)
        spans.append((high - low) / np.median(widths))
    assert sum(held) >= 13
    assert np.median(spans) < 0.1  # and it is not merely wide


def test_the_interval_of_a_thin_crack_reaches_down_to_zero(tracer: Tracer) -> None:
    line = find_lines(photo_of(with_line(surface(), drawn_course(), 1.0, 0.8)), None, tracer)[0]
    assert line.median_width_px < 2
    assert line.width_low_px == 0
    assert line.width_high_px > 1


@pytest.mark.parametrize("width_px", [2.0, 9.0])
def test_a_straight_joint_is_no_crack(width_px: float, tracer: Tracer) -> None:
    joint = np.stack([np.linspace(-10, SIZE + 10, 40), np.full(40, 200.0)], axis=1)
    assert not find_lines(photo_of(with_line(surface(), joint, width_px)), None, tracer)


@pytest.mark.parametrize("step", [-60, 60])
def test_the_edge_between_two_surfaces_is_no_crack(step: int, tracer: Tracer) -> None:
    grey = surface()
    grey[:, 300:] += step
    assert not find_lines(photo_of(gaussian_filter(grey, 0.6)), None, tracer)


@pytest.mark.parametrize("grey", [np.full((SIZE, SIZE), 128.0), surface()])
def test_a_photo_without_a_crack_has_no_line(grey: np.ndarray, tracer: Tracer) -> None:
    assert find_lines(photo_of(grey), None, tracer) == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (100, 37)])
def test_photos_of_any_size_are_searched(shape: tuple[int, int], tracer: Tracer) -> None:
    assert find_lines(np.full((*shape, 3), 128, np.uint8), None, tracer) == []


def test_the_same_photo_has_the_same_lines(tracer: Tracer) -> None:
    pixels = photo_of(with_line(surface(), drawn_course(), 3.0))
    first, second = (find_lines(pixels, None, tracer) for _ in range(2))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.points, other.points)
        assert np.array_equal(one.widths_px, other.widths_px)
        assert one.confidence == other.confidence


@pytest.mark.parametrize(("n_tiles", "n_searched"), [(9, 9), (100, 64)])
def test_lines_are_searched_for_in_the_likeliest_tiles_of_a_large_photo(n_tiles: int, n_searched: int) -> None:
    tiles = pd.DataFrame({"x": 10 * np.arange(n_tiles), "y": 0, "size": 10, "probability": np.arange(n_tiles) / 2000})
    searched = searched_area(tiles, 0.4, (10, 10 * n_tiles))
    assert searched[0, ::10].tolist() == [False] * (n_tiles - n_searched) + [True] * n_searched


def test_every_tile_that_is_called_cracked_is_searched() -> None:
    tiles = pd.DataFrame({"x": 10 * np.arange(100), "y": 0, "size": 10, "probability": [0.4] * 80 + [0.3] * 20})
    assert searched_area(tiles, 0.4, (10, 1000))[0, ::10].tolist() == [True] * 80 + [False] * 20


def test_the_length_of_a_line_is_the_sum_of_its_parts() -> None:
    assert line_of([(0, 0), (3, 4), (3, 10)]).length_px == 5 + 6


def test_the_width_of_a_line_is_the_median_and_the_95th_percentile_of_its_points() -> None:
    line = CrackLine(np.zeros((3, 2)), np.array([1.0, 5.0, 3.0]), 2.0, 4.0, 1.0)
    assert line.median_width_px == 3
    assert line.p95_width_px == pytest.approx(4.8)


def test_a_mask_has_the_size_of_the_photo_and_lines_as_wide_as_their_cracks() -> None:
    mask = draw_mask([line_of([(10, 20), (90, 20)], 5.0), line_of([(10, 50), (90, 50)])], (60, 100))
    assert mask.shape == (60, 100)
    assert set(np.unique(mask)) == {0, 255}
    assert np.flatnonzero(mask[:, 50]).tolist() == [18, 19, 20, 21, 22, 50]
