import re

from page_reader import Page

from pipeline.evaluation.architecture_diagram import architecture_diagram


def block(title="a layer", shape=(8, 8, 4), n_weights=0, *, is_nested=False):
    return {"title": title, "detail": "Layer", "shape": list(shape), "n_weights": n_weights, "is_nested": is_nested}


def test_larger_pictures_are_wider_and_more_channels_higher():
    shapes = [(32, 32, 3), (16, 16, 4), (8, 8, 8), (8,)]
    drawn = architecture_diagram([block(shape=(None, None, 3)), *(block(shape=shape) for shape in shapes)])
    sizes = re.findall(r'width="([\d.]+)" height="([\d.]+)"', drawn)
    widths, heights = ([float(size[side]) for size in sizes] for side in (0, 1))
    assert widths[0] == widths[1] > widths[2] > widths[3] > widths[4]
    assert heights[1] < heights[2] < heights[3] == heights[4]


def test_each_block_has_its_title_its_shape_and_its_weights():
    text = Page(architecture_diagram([block("image", (None, None, 3)), block("head", (1,), 1234)])).text
    assert "image any x any x 3 Layer" in text
    assert "head 1; 1,234 weights Layer" in text


def test_the_drawing_is_safe_to_show_and_uses_the_colours_of_the_page():
    page = Page(architecture_diagram([block(), block("<b>&", n_weights=3, is_nested=True), block(n_weights=2)]))
    assert "<b>&" in page.text
    fills = {attributes["fill"] for attributes in page.all("rect") + page.all("text")}
    assert fills == {"var(--line)", "var(--series-0)", "var(--series-1)", "var(--text)"} | {"var(--muted)"} & fills
    assert all(fill.startswith("var(--") for fill in fills)


def test_a_connector_meets_every_block_on_its_way_and_is_hidden_behind_them():
    shapes = [(32, 32, 3), (4, 4, 1280), (7648,), (1,)]
    page = Page(architecture_diagram([block(shape=shape) for shape in shapes]))
    x, top, length = map(float, re.fullmatch(r"M([\d.]+) ([\d.]+)v([\d.]+)", page.all("path")[0]["d"]).groups())
    boxes = [{side: float(box[side]) for side in ("x", "y", "width", "height")} for box in page.all("rect")]
    assert all(box["x"] < x < box["x"] + box["width"] for box in boxes)
    assert boxes[0]["y"] <= top <= boxes[0]["y"] + boxes[0]["height"]
    assert boxes[-1]["y"] <= top + length <= boxes[-1]["y"] + boxes[-1]["height"]
    assert [tag for tag, _ in page.elements if tag in ("path", "rect")] == ["path", *["rect"] * len(shapes)]
