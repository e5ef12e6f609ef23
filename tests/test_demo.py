import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps
from pydantic import ValidationError

from pipeline.data.demo import Recipe, draw, read_recipe
from pipeline.errors import CracksError

SHIPPED = Path(__file__).parents[1] / "data" / "demo.yaml"
TINY = Recipe(
    seed=7,
    size_px=64,
    images_per_class=6,
    mirrored_per_class=4,
    jpeg_quality=90,
    crack_width_px=(1, 4),
    crack_darkness=(0.5, 0.9),
    look_alikes_crack=0.5,
    look_alikes_intact=0.5,
)


def tiny(**changes):
    return TINY.model_copy(update=changes)


@pytest.fixture(scope="module")
def files():
    return dict(draw(TINY))


def opened(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def pixels(image):
    return np.asarray(image, np.float32)


def originals(files, label, recipe=TINY):
    return [opened(files[f"{label}/{number:04d}.jpg"]) for number in range(1, recipe.images_per_class + 1)]


def brightness(files, label):
    return np.mean([pixels(image).mean() for image in originals(files, label)])


def unit_thumbnails(images):
    flat = np.stack([pixels(image.convert("L").resize((24, 24), Image.Resampling.BOX)).ravel() for image in images])
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def greatest_similarity(images):
    """Greatest cosine of two images' thumbnails, in the best of the four mirrorings of one of them."""
    upright = unit_thumbnails(images)
    mirrorings = [[change(image) for image in images] for change in (ImageOps.mirror, ImageOps.flip)]
    turned = [image.rotate(180) for image in images]
    similarities = [upright @ unit_thumbnails(changed).T for changed in (images, *mirrorings, turned)]
    return max(np.triu(similarity, k=1).max() for similarity in similarities)


def test_the_same_recipe_gives_the_same_bytes_in_the_same_order(files):
    assert list(draw(TINY)) == list(files.items())


def test_another_seed_gives_other_images(files):
    others = dict(draw(tiny(seed=8)))
    assert not {files[f"crack/{n:04d}.jpg"] for n in range(1, 7)} & {others[f"crack/{n:04d}.jpg"] for n in range(1, 7)}


def test_each_class_has_its_images_then_the_copies_then_a_broken_file(files):
    numbers = range(1, 6 + 4 + 1 + 1)
    assert list(files) == [f"{label}/{number:04d}.jpg" for label in ("crack", "intact") for number in numbers]


@pytest.mark.parametrize("counts", [{"images_per_class": 9}, {"mirrored_per_class": 0}])
def test_an_image_does_not_depend_on_how_many_there_are(files, counts):
    others = dict(draw(tiny(**counts)))
    for name in (f"{label}/{number:04d}.jpg" for label in ("crack", "intact") for number in range(1, 7)):
        assert others[name] == files[name]


def test_all_images_are_square_colour_jpegs_of_the_size_in_the_recipe(files):
    for image in originals(files, "crack") + originals(files, "intact"):
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))


@pytest.mark.parametrize("label", ["crack", "intact"])
@pytest.mark.parametrize(("index", "change"), [(0, ImageOps.mirror), (1, ImageOps.flip), (2, ImageOps.mirror)])
def test_the_copies_are_mirrored_images_saved_again(files, label, index, change):
    original, copy = opened(files[f"{label}/{1 + index:04d}.jpg"]), opened(files[f"{label}/{7 + index:04d}.jpg"])
    difference = np.abs(pixels(copy) - pixels(change(original))).mean()
    assert difference < 2  # grey levels, what saving twice costs
    assert difference < np.abs(pixels(copy) - pixels(original)).mean() / 3


def test_exactly_two_files_cannot_be_decoded(files):
    broken = []
    for name, content in files.items():
        try:
            opened(content)
        except OSError:
            broken.append(name)
    assert broken == ["crack/0011.jpg", "intact/0011.jpg"]


def test_one_broken_file_is_a_truncated_jpeg_and_one_is_a_text(files):
    assert files["crack/0001.jpg"].startswith(files["crack/0011.jpg"])
    with pytest.raises(OSError, match="truncated"):
        opened(files["crack/0011.jpg"])
    assert files["intact/0011.jpg"].isascii()
    with pytest.raises(Image.UnidentifiedImageError, match="cannot identify"):
        opened(files["intact/0011.jpg"])


def test_no_two_drawings_are_near_copies(files):
    assert greatest_similarity(originals(files, "crack") + originals(files, "intact")) < 0.97


@pytest.mark.slow
def test_no_two_drawings_of_the_shipped_recipe_are_near_copies():
    recipe = read_recipe(SHIPPED)
    files = dict(draw(recipe))
    assert greatest_similarity(originals(files, "crack", recipe) + originals(files, "intact", recipe)) < 0.97


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ({"crack_darkness": (0.1, 0.1)}, {"crack_darkness": (0.9, 0.9)}),
        ({"crack_width_px": (1, 1)}, {"crack_width_px": (8, 8)}),
    ],
)
def test_darker_and_wider_cracks_take_light_from_cracked_images_only(low, high):
    less, more = dict(draw(tiny(**low))), dict(draw(tiny(**high)))
    assert brightness(more, "crack") < brightness(less, "crack") - 3  # grey levels
    assert brightness(more, "intact") == brightness(less, "intact")


@pytest.mark.parametrize(("label", "other"), [("crack", "intact"), ("intact", "crack")])
def test_each_class_has_its_own_share_of_look_alikes(label, other):
    without, with_all = (dict(draw(tiny(**{f"look_alikes_{label}": share}))) for share in (0, 1))
    names = [f"{label}/{number:04d}.jpg" for number in range(1, 7)]
    assert all(without[name] != with_all[name] for name in names)
    assert all(without[name.replace(label, other)] == with_all[name.replace(label, other)] for name in names)


def test_a_cracked_image_has_more_dark_pixels_than_an_intact_one_without_look_alikes():
    files = dict(draw(tiny(images_per_class=20, look_alikes_crack=0, look_alikes_intact=0, crack_darkness=(0.8, 0.9))))
    recipe = tiny(images_per_class=20)
    dark = {
        label: np.mean(
            [(pixels(i.convert("L")) < 0.6 * np.median(pixels(i))).mean() for i in originals(files, label, recipe)]
        )
        for label in ("crack", "intact")
    }
    assert dark["crack"] > 3 * dark["intact"]


def test_the_shipped_recipe_can_be_read():
    recipe = read_recipe(SHIPPED)
    assert (recipe.images_per_class, recipe.mirrored_per_class, recipe.size_px) == (360, 40, 128)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        TINY.seed = 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "grey"}, r"colour: Extra inputs are not permitted \(received 'grey'\)"),
        ({"size_px": 8}, r"size_px: .* greater than or equal to 32 \(received 8\)"),
        ({"jpeg_quality": 100}, r"jpeg_quality: .* less than or equal to 95 \(received 100\)"),
        ({"crack_darkness": [0.5, 1.5]}, r"crack_darkness\.1: .* less than or equal to 1 \(received 1\.5\)"),
        ({"crack_width_px": [4, 1]}, "the start of a range exceeds its end"),
        ({"mirrored_per_class": 7}, "mirrored_per_class exceeds images_per_class"),
    ],
)
def test_a_recipe_with_an_unknown_key_or_an_impossible_value_is_refused(tmp_path, changes, message):
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(TINY.model_dump(mode="json") | changes))
    with pytest.raises(CracksError, match=rf"demo\.yaml cannot be used:\s+.*{message}"):
        read_recipe(path)


def test_a_recipe_without_one_of_the_keys_is_refused(tmp_path):
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(TINY.model_dump(mode="json", exclude={"seed"})))
    with pytest.raises(CracksError, match="seed: Field required"):
        read_recipe(path)


@pytest.mark.parametrize("content", [b"seed: [1", b"\xff\xfe\xfa"])
def test_a_recipe_that_is_not_yaml_is_refused(tmp_path, content):
    path = tmp_path / "demo.yaml"
    path.write_bytes(content)
    with pytest.raises(CracksError, match=r"demo\.yaml cannot be read(.|\n)*Correct it"):
        read_recipe(path)


def test_an_empty_recipe_is_refused(tmp_path):
    path = tmp_path / "demo.yaml"
    path.touch()
    with pytest.raises(CracksError, match="the file: Input should be a valid dictionary"):
        read_recipe(path)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(CracksError, match=r"No such file.*restore it with git"):
        read_recipe(tmp_path / "demo.yaml")
