"""Tests of the drawings that the tracer of crack lines is trained on, and of the one that ships."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.models.model_files import TRACER_FILE
from pipeline.training.build_tracer import read_intact
from pipeline.training.drawn_cracks import IGNORED, draw_example, draw_line


def concrete(rng: np.random.Generator) -> np.ndarray:
    """Return a grey tile with grain, (256, 256), uint8."""
    return np.clip(rng.normal(140, 8, (256, 256)), 0, 255).astype(np.uint8)


def test_a_drawn_line_covers_as_many_pixels_as_it_is_wide_and_long() -> None:
    course = np.stack([np.linspace(20, 80, 16), np.full(16, 50.0)], axis=1)
    assert draw_line(course, np.full(16, 4.0), 100).sum() == pytest.approx(60 * 4, rel=0.1)


def test_drawn_examples_have_cracks_that_are_darker_than_what_is_around_them() -> None:
    rng = np.random.default_rng(0)
    examples = [draw_example(concrete(rng), 256, rng) for _ in range(40)]
    for picture, label in examples:
        assert picture.shape == label.shape == (256, 256)
        assert set(np.unique(label)) <= {0, 1, IGNORED}
    cracked = [(picture, label == 1) for picture, label in examples if (label == 1).sum() > 200]
    assert 10 <= len(cracked) < 40
    darker = [picture[crack].mean() < picture[~crack].mean() for picture, crack in cracked]
    assert np.mean(darker) > 0.8


def test_the_graph_that_ships_has_less_than_a_megabyte() -> None:
    assert sum(TRACER_FILE.with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")) < 1_000_000


def test_the_shipped_tracer_is_trained_on_intact_images_but_those_that_measure_maps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "sdnet.zip", "w") as archive:
        for name in ("Decks/Non-cracked/7024-1.jpg", "Decks/Cracked/7024-2.jpg", "Decks/Non-cracked/7029-1.jpg"):
            file = io.BytesIO()
            Image.fromarray(concrete(rng)).save(file, "JPEG")
            archive.writestr(name, file.getvalue())
    assert len(read_intact([tmp_path / "sdnet.zip"])) == 1
