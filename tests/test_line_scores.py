"""Scores of crack lines count what is near, and what may be found but need not be."""

import numpy as np
import pytest
from cracked_photos import cracked_photo

from pipeline.crack_lines.crack_line import draw_mask
from pipeline.crack_lines.find_lines import find_lines
from pipeline.crack_lines.tracer import load_tracer
from pipeline.evaluation.line_scores import DrawnImage, drawn_line_scores, line_scores, matches


def skeleton(row: int, length_px: int) -> np.ndarray:
    """Return a straight line of pixels in a mask of (20, 100)."""
    mask = np.zeros((20, 100), bool)
    mask[row, :length_px] = True
    return mask


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (skeleton(12, 50), (2 / 3, 1.0, 0.5)),
        (skeleton(13, 100), (0.0, 0.0, 0.0)),
        (skeleton(0, 0), (0.0, 0.0, 0.0)),
    ],
)
def test_a_line_counts_where_it_is_two_pixels_from_the_true_one_at_most(found, expected):
    scores = line_scores(matches(found, skeleton(10, 100), 2))
    assert tuple(scores.values()) == pytest.approx(expected, abs=0.02)


def test_a_crack_that_is_too_faint_may_be_found_but_a_line_where_there_is_none_counts_against_the_tracer():
    pixels, _ = cracked_photo(300, 300, [[(0, 80), (300, 80)], [(0, 220), (300, 220)]], 140, 4)
    tracer = load_tracer()
    first, second = (draw_mask([line], (300, 300)) > 0 for line in find_lines(pixels, None, tracer))
    nothing = np.zeros_like(first)
    assert drawn_line_scores(tracer, [DrawnImage(pixels, first, second)])["precision"] == 1
    assert drawn_line_scores(tracer, [DrawnImage(pixels, first, nothing)])["precision"] == pytest.approx(0.5, abs=0.1)
    assert drawn_line_scores(tracer, [DrawnImage(pixels, first | second, nothing)])["recall"] == 1
