"""What `cracks map` says of crack lines, opened again by the libraries that people use."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO
from shapely.geometry import LineString, Point, Polygon, shape

from pipeline.crack_lines.crack_line import CrackLine, draw_mask
from pipeline.crack_maps.crack_properties import class_of, colours, properties_of
from pipeline.crack_maps.line_files import geojson, outline, write_tables
from pipeline.data.images import encode_png
from pipeline.data.photos import filled
from pipeline.params import Map

CLASSES = Map(tile_px=128, overlap=0, model_mm_per_px=None).width_classes
HEIGHT, WIDTH = 160, 240


def line(corners, widths, confidence=0.9):
    """Return a crack line with a point every 2 px, as found lines have."""
    points = np.concatenate(
        [np.linspace(*ends, 1 + round(np.hypot(*np.subtract(*ends)) / 2)) for ends in pairwise(corners)]
    )
    widths = np.broadcast_to(np.array(widths, np.float64), len(points)).copy()
    median = float(np.median(widths))
    return CrackLine(points, widths, median - 0.5, median + 0.5, confidence)


BENT = line([(20, 30), (80, 30), (80, 110)], 6)  # 140 px long
HAIRLINE = line([(100, 20), (200, 95)], 1.2)  # 125 px long
FINE = line([(150, 130), (230, 130)], 0.5)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The files of the lines of two photos, of which the first is named like a formula."""
    monkeypatch.chdir(tmp_path)
    found = {Path("=a.jpg"): [BENT, HAIRLINE, FINE], Path("site/b.jpg"): []}
    names = dict(zip(found, "ab", strict=True))
    for path, lines in zip(names, found.values(), strict=True):
        photo = {"photo": str(path), "width": WIDTH, "height": HEIGHT, "mm_per_px": 0.1}
        (tmp_path / f"{names[path]}.geojson").write_bytes(geojson(lines, properties_of(lines, 0.1, CLASSES), photo))
        (tmp_path / f"{names[path]}.mask.png").write_bytes(encode_png(draw_mask(lines, (HEIGHT, WIDTH))))
    write_tables(tmp_path, names)
    return tmp_path


def test_shapely_reads_the_lines_where_they_are_with_what_was_measured(written):
    collection = json.loads((written / "a.geojson").read_text())
    assert (collection["width"], collection["height"]) == (WIDTH, HEIGHT)
    courses = [shape(feature["geometry"]) for feature in collection["features"]]
    for course, original in zip(courses, (BENT, HAIRLINE, FINE), strict=True):
        assert course.hausdorff_distance(LineString(original.points)) < 0.01
    assert [course.length for course in courses] == pytest.approx([140, 125, 80], abs=0.01)
    bent, hairline, _ = (feature["properties"] for feature in collection["features"])
    assert bent["id"] == 1
    assert (bent["length_px"], bent["width_px"], bent["width_p95_px"]) == (140, 6, 6)
    assert (bent["length_mm"], bent["width_mm"], bent["width_p95_mm"]) == pytest.approx((14, 0.6, 0.6))
    assert (bent["length"], bent["width"], bent["width_p95"]) == ("14 mm", "0.60 mm (0.55 to 0.65)", "0.60 mm")
    assert (hairline["width"], hairline["width_mm"], hairline["width_class"]) == (
        "under 2 px (0.20 mm)", None, "under 2 px",
    )  # fmt: skip


def test_pycocotools_reads_each_crack_as_wide_as_it_is_within_a_pixel(written, capsys):
    coco = COCO(written / "cracks.coco.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["=a.jpg", "site/b.jpg"]
    assert [len(coco.getAnnIds([image])) for image in coco.getImgIds()] == [3, 0]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["crack"]
    expected = ((BENT, 6), (HAIRLINE, 1.2), (FINE, 1))
    for annotation, (original, width) in zip(coco.loadAnns(coco.getAnnIds()), expected, strict=True):
        rows, columns = np.nonzero(coco.annToMask(annotation))
        course = LineString(original.points)
        assert max(course.distance(Point(place)) for place in zip(columns, rows, strict=True)) < width / 2 + 1
        marked = np.zeros((HEIGHT, WIDTH), bool)
        marked[rows, columns] = True
        along = [course.interpolate(distance) for distance in range(4, int(course.length) - 3)]
        near = [marked[round(at.y) - 1 : round(at.y) + 2, round(at.x) - 1 : round(at.x) + 2].any() for at in along]
        assert all(near)
        assert len(rows) == pytest.approx(course.length * width, rel=0.3)
        assert annotation["area"] == pytest.approx(course.length * width, rel=0.1)
        left, top, box_width, box_height = annotation["bbox"]
        assert left - 1 <= columns.min() <= columns.max() <= left + box_width
        assert top - 1 <= rows.min() <= rows.max() <= top + box_height


def test_the_polygon_of_a_line_is_valid_and_as_wide_as_the_crack_at_each_point():
    points = np.column_stack([np.arange(0, 100, 3.0), 50 + 10 * np.sin(np.arange(0, 100, 3.0) / 15)])
    polygon = Polygon(outline(points, np.full(len(points), 4.0)))
    assert polygon.is_valid
    assert polygon.symmetric_difference(LineString(points).buffer(2, cap_style="flat")).area < 4


def test_the_mask_has_the_size_of_the_photo_and_is_0_or_255(written):
    mask = np.asarray(Image.open(written / "a.mask.png"))
    assert (mask.shape, mask.dtype, set(np.unique(mask))) == ((HEIGHT, WIDTH), np.uint8, {0, 255})
    assert mask[30, 20:81].min() == 255
    assert mask[:, :15].max() == 0
    assert np.asarray(Image.open(written / "b.mask.png")).max() == 0


def test_the_table_has_a_row_a_crack_and_no_formula(written):
    table = pd.read_csv(written / "cracks.csv")
    assert table["id"].tolist() == [1, 2, 3]
    assert table["length_px"].tolist() == pytest.approx([140, 125, 80])
    assert table["width_class"].tolist() == ["over 0.41 mm", "under 2 px", "under 2 px"]
    assert table["confidence"].tolist() == [0.9] * 3
    assert table["photo"].unique().tolist() == ["'=a.jpg"]


def test_a_width_class_is_that_of_the_95th_percentile_and_begins_above_its_limit():
    widths = {3.0: "up to 0.3 mm", 3.1: "up to 0.41 mm", 4.1: "up to 0.41 mm", 4.2: "over 0.41 mm", 1.9: "under 2 px"}
    assert {width: class_of(width, 0.1, CLASSES) for width in widths} == widths
    narrow_but_once = line([(0, 0), (18, 0)], [3] * 9 + [9])
    [crack] = properties_of([narrow_but_once], 0.1, CLASSES)
    assert (crack.width_class, crack.stroke) == ("over 0.41 mm", colours(CLASSES)["over 0.41 mm"])


def test_without_a_scale_there_are_pixels_and_no_class():
    wide, hairline = properties_of([BENT, HAIRLINE], None, CLASSES)
    assert (wide.length, wide.width, wide.width_class, wide.width_mm) == ("140 px", "6.0 px (5.5 to 6.5)", None, None)
    assert (hairline.width, hairline.width_class) == ("under 2 px", None)
    assert wide.stroke == hairline.stroke not in colours(CLASSES).values()


def test_every_width_class_has_a_colour_of_its_own():
    drawn = colours(CLASSES)
    assert next(iter(drawn)) == "up to 0.1 mm"
    assert len(set(drawn.values())) == len(CLASSES) + 1


def test_a_transparent_part_has_the_colour_of_the_photo_so_that_its_edge_is_no_line():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = (90, 100, 110)
    shown = np.zeros((8, 8), bool)
    shown[:, 4:] = True
    assert (filled(pixels, shown) == (90, 100, 110)).all()
    assert filled(pixels, None) is pixels
