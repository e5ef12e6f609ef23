from unicodedata import normalize

import pytest

from pipeline.data.path_metadata import DEFAULT_LABELS, check_photo_pattern, label_of, photo_of, slice_of


@pytest.mark.parametrize("pattern", [None, "(a)", "a(b)(c)", "(?P<photo>.*)_"])
def test_a_photo_pattern_with_a_group_or_none_at_all_is_accepted(pattern):
    check_photo_pattern(pattern)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Positive/00001.jpg", "crack"),
        ("Negative/deep/er/00001.jpg", "intact"),
        ("archive/Decks/Cracked/7001-1.jpg", "crack"),
        ("archive/Decks/Non-cracked/7001-1.jpg", "intact"),
        ("Negative/Positive/00001.jpg", "crack"),  # the nearest folder counts
        ("elsewhere/Positive.jpg", None),
        ("Positive", None),  # a file of that name
        ("positive/00001.jpg", "crack"),
        ("NON-CRACKED/00001.jpg", "intact"),
        ("pos/00001.jpg", None),
    ],
)
def test_the_nearest_known_folder_gives_the_label(path, label):
    assert label_of(path, DEFAULT_LABELS) == label


def test_labels_of_a_data_set_replace_the_usual_ones():
    assert label_of("Riss/Positive/1.jpg", {"Riss": "crack"}) == "crack"
    assert label_of("Positive/1.jpg", {"Riss": "crack"}) is None
    assert label_of("CD/1.jpg", {"Riss": "crack"}) is None


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("form_of_label", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_the_same_folder(form, form_of_label):
    path, labels = normalize(form, "Brücke/fissuré/1.jpg"), {normalize(form_of_label, "fissuré"): "crack"}
    assert label_of(path, labels) == "crack"
    assert slice_of(path, labels) == normalize("NFC", "Brücke")


@pytest.mark.parametrize(
    ("path", "label", "surface"),
    [
        ("D/CD/7001-1.jpg", "crack", "Decks"),
        ("SDNET2018/P/UP/001-1.jpg", "intact", "SDNET2018/Pavements"),
        ("W/CW/7069-1.jpg", "crack", "Walls"),
        ("UW/7069-1.jpg", "intact", "Walls"),
        ("Cracked/UP/1.jpg", "crack", "UP"),  # seen upwards, say
        ("up/1.jpg", None, "up"),
    ],
)
def test_the_folders_of_sdnet_as_published_give_label_and_surface(path, label, surface):
    assert (label_of(path, None), slice_of(path, None)) == (label, surface)


@pytest.mark.parametrize(
    ("path", "pattern", "photo"),
    [
        ("Positive/7001-12.jpg", r"/(\d+)-", "7001"),
        ("Positive/deck.jpg", r"/(\d+)-", None),
        ("Positive/7001-12.jpg", None, None),
        ("W/CW/7001-12.jpg", r"(\w+)/C?(\w+)", "W"),
        ("a.jpg", r"a(b)?", None),
    ],
)
def test_the_first_group_of_the_pattern_names_the_photo(path, pattern, photo):
    assert photo_of(path, pattern) == photo


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Decks/Cracked/7001-1.jpg", "Decks"),
        ("archive/Decks/Non-cracked/deep/7001-1.jpg", "archive/Decks/deep"),
        ("Positive/00001.jpg", ""),
        ("Positive.jpg", ""),
    ],
)
def test_a_slice_is_the_folders_that_are_no_labels(path, expected):
    assert slice_of(path, DEFAULT_LABELS) == expected
