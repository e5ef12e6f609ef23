"""The folder of scored images: each is stored once, the oldest are deleted, the limit holds."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.sources import find_images
from serving.recording import KeptImages


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_an_image_that_comes_again_is_there_once(tmp_path, encode, draw_tile):
    kept = KeptImages(tmp_path / "images", 1)
    content = encode(draw_tile(0))
    assert kept.keep(content) == kept.keep(content)
    assert [path.read_bytes() for path in (tmp_path / "images").iterdir()] == [content]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_kept_image_has_a_name_by_which_it_is_found_as_an_image(tmp_path, encode, draw_tile, file_format):
    path = KeptImages(tmp_path, 1).keep(encode(draw_tile(0), file_format))
    assert find_images([tmp_path]) == [path]


def grey_file(level, encode):
    """A file of a little over 40 x 40 x 3 bytes, another one for each level."""
    return encode(Image.fromarray(np.full((40, 40, 3), level, np.uint8)), "BMP")


@settings(max_examples=20)
@given(levels=st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_the_folder_never_outgrows_its_limit(tmp_path_factory, encode, levels):
    folder = tmp_path_factory.mktemp("images")
    limit_bytes = 7.5 * len(grey_file(0, encode))
    for position, level in enumerate(levels):
        if position % 10 == 0:
            kept = KeptImages(folder, limit_bytes / 1e6)  # the server starts anew
        kept.keep(grey_file(level, encode))
        assert size_of(folder) <= limit_bytes


def test_the_oldest_go_and_one_that_came_again_is_not_old(tmp_path, encode):
    one_mb = len(grey_file(0, encode)) / 1e6
    kept = KeptImages(tmp_path, 3.5 * one_mb)
    paths = [kept.keep(grey_file(level, encode)) for level in (0, 1, 2)]
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    kept.keep(grey_file(0, encode))
    newest = kept.keep(grey_file(3, encode))
    assert set(tmp_path.iterdir()) == {paths[0], paths[2], newest}


def test_an_image_larger_than_the_limit_is_not_left_there(tmp_path, encode):
    KeptImages(tmp_path, 1e-5).keep(grey_file(0, encode))
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_server_kept_counts(tmp_path, encode):
    n_bytes = len(grey_file(0, encode))
    earlier = KeptImages(tmp_path, 1)
    for level in range(60):
        earlier.keep(grey_file(level, encode))
    KeptImages(tmp_path, 40 * n_bytes / 1e6).keep(grey_file(60, encode))
    assert len(list(tmp_path.iterdir())) == 38  # 95 % of the limit
