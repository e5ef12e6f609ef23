from pathlib import Path
from xml.etree.ElementTree import fromstring

import numpy as np
from PIL import Image

from benchmarks import readme_images
from benchmarks.readme_images import WIDTH_PX, predictions_grid, side_by_side, standalone
from pipeline.evaluation.examples import Picture
from pipeline.page import svg

IMAGES = Path(readme_images.__file__).parents[1] / "docs/images"
SVG = "{http://www.w3.org/2000/svg}"


def test_photo_and_map_stand_beside_each_other_at_the_same_place_over_the_legend():
    photo = Image.new("RGB", (2000, 1000), "blue")
    photo.paste("green", (500, 0, 1500, 1000))
    crack_map = Image.new("RGB", (2000, 1100), "yellow")  # what is below the photo is the legend
    crack_map.paste("blue", (0, 0, 2000, 1000))
    crack_map.paste("red", (500, 0, 1500, 1000))
    picture = side_by_side(photo, crack_map, (500, 0, 1500, 1000))
    middle, legend = picture.height // 3, picture.height - 20
    at = [picture.getpixel((x, y)) for x, y in [(99, middle), (1100, middle), (99, legend), (1100, legend)]]
    assert at == [(0, 128, 0), (255, 0, 0), (255, 255, 0), (255, 255, 0)]
    assert (0, 0, 255) not in [colour for _, colour in picture.getcolors(picture.width * picture.height)]
    assert picture.width == WIDTH_PX
    assert picture.height > WIDTH_PX / 2 + 40


def test_drawings_of_the_page_stand_alone_in_its_light_colours_beside_and_below_each_other():
    drawing = '<svg viewBox="0 0 200 237.6"><path stroke="var(--muted)"/></svg>'
    content = standalone({"first": [drawing, svg("loss", lambda axes: axes.plot([1, 2]))], "second": [drawing]})
    assert "var(" not in content
    assert 'fill="#ffffff"' in content
    root = fromstring(content)  # noqa: S314 - made here
    assert [title.text for title in root.findall(f"{SVG}text")] == ["first", "second"]
    sides = [[float(one.get(side)) for side in ("x", "y", "width", "height")] for one in root.findall(f"{SVG}svg")]
    boxes = [(x, y, x + width, y + height) for x, y, width, height in sides]
    assert boxes[0][2] < boxes[1][0]
    assert boxes[0][3] == boxes[1][3] < boxes[2][1]
    assert boxes[1][2] < float(root.get("width"))
    assert boxes[2][3] < float(root.get("height"))


def test_each_prediction_has_its_label_its_probability_and_whether_it_is_right():
    said = [("crack", 0.99999), ("intact", 0.0001), ("crack", 0.5), ("crack", 0.25), ("intact", 0.75)]
    grey = np.full((8, 8, 3), 128, np.uint8)
    pictures = [Picture(f"{n}.png", "ours", label, probability, grey) for n, (label, probability) in enumerate(said)]
    figure = predictions_grid(pictures, 0.5, "On test")
    assert figure.get_suptitle() == "On test"
    assert [axes.get_xlabel().replace("\n", " ") for axes in figure.axes] == [
        "right: label crack, probability of a crack >0.999",
        "right: label intact, probability of a crack <0.001",
        "right: label crack, probability of a crack 0.500",
        "WRONG: label crack, probability of a crack 0.250",
        "WRONG: label intact, probability of a crack 0.750",
        *[""] * 3,
    ]


def test_the_images_of_the_readme_are_light():
    sizes = {path.name: path.stat().st_size for path in IMAGES.iterdir()}
    assert sizes.keys() == {"crack-lines.jpg", "crack-map.jpg", "label-audit.jpg", "predictions.jpg", "training.svg"}
    assert max(sizes.values()) < 200_000
    assert sum(sizes.values()) < 500_000
