"""Crack lines in the formats that other programs open: GeoJSON and a mask of each photo, CSV and COCO of all photos."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.crack_lines.crack_line import CrackLine, Points, Widths, normals
from pipeline.crack_maps.crack_properties import CrackProperties
from pipeline.files import replacing
from pipeline.safe_text import as_utf8, cell, printable

GEOJSON_SUFFIX = ".geojson"
CSV_FILE, COCO_FILE = "cracks.csv", "cracks.coco.json"
PIXEL_CENTRE = 0.5  # in COCO the corner of the first pixel is (0, 0), elsewhere here its centre
N_WIDEST = 10
MIN_DRAWN_PX = 1.0  # width of a thinner crack in COCO

Feature = dict[str, Any]  # of GeoJSON: the course of a crack in image coordinates, and its properties


@dataclass
class FoundCracks:
    """What the page says of the cracks of all photos."""

    lengths_px: dict[str, dict[str | None, float]]  # by name of the photo and width class
    widest: list[tuple[Path, Feature]]  # of all photos, each with the path of its photo

    def add(self, path: Path, name: str, features: Sequence[Feature]) -> None:
        """Add the cracks of a photo."""
        lengths = self.lengths_px.setdefault(name, {})
        for crack in (feature["properties"] for feature in features):
            lengths[crack["width_class"]] = lengths.get(crack["width_class"], 0) + crack["length_px"]
        both = [*self.widest, *((path, feature) for feature in features)]
        width_and_length = itemgetter("width_p95_px", "length_px")
        self.widest = nlargest(N_WIDEST, both, key=lambda crack: width_and_length(crack[1]["properties"]))


def geojson(lines: Sequence[CrackLine], cracks: Sequence[CrackProperties], report: Mapping[str, Any]) -> bytes:
    """Return lines as GeoJSON in image coordinates: pixels of the upright photo, y downwards, centres are integers.

    `report` is that of the photo. The property `widths_px` has a value for each point.
    """
    photo = {name: report[name] for name in ("photo", "width", "height", "mm_per_px")}
    features = []
    for line, crack in zip(lines, cracks, strict=True):
        widths = line.widths_px.round(2).tolist()
        features.append(line_feature(line.points.round(2).tolist(), {**crack.model_dump(), "widths_px": widths}))
    return feature_collection(features, **photo)


def line_feature(points: Sequence[Sequence[float]], properties: Mapping[str, Any]) -> Feature:
    """Return a line as GeoJSON; its id is that of its properties."""
    course = {"type": "LineString", "coordinates": points}
    return {"type": "Feature", "id": properties["id"], "geometry": course, "properties": properties}


def feature_collection(features: Sequence[Feature], **photo: object) -> bytes:
    """Return a file of lines; `photo` is what is said of all."""
    return json.dumps({"type": "FeatureCollection", **photo, "features": features}, allow_nan=False).encode()


def outline(points: Points, widths: Widths) -> Points:
    """Return the polygon around a line of given widths, (2 n, 2); widths below 1 px count as 1 px."""
    side = normals(np.gradient(points, axis=0)) * (np.maximum(widths, MIN_DRAWN_PX) / 2)[:, None]
    return np.concatenate([points + side, (points - side)[::-1]])


def write_tables(out: Path, names: Mapping[Path, str]) -> FoundCracks:
    """Write the cracks of mapped photos, each with the name of its files, as CSV and COCO; return the widest ones."""
    folder = os.path.commonpath([path.absolute().parent for path in names] or [Path("/")])
    images, n_annotations, found = [], 0, FoundCracks({}, [])
    with (
        replacing(out / CSV_FILE) as partial_csv,
        replacing(out / COCO_FILE) as partial_coco,
        partial_csv.open("w", encoding="utf-8", newline="") as table,
        partial_coco.open("w", encoding="utf-8") as coco,
    ):
        columns = ["photo", *CrackProperties.model_fields]
        rows = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
        rows.writeheader()
        coco.write('{"annotations": [')  # which are written one by one: there may be very many
        for number, (path, name) in enumerate(names.items(), start=1):
            photo = json.loads((out / f"{name}{GEOJSON_SUFFIX}").read_text(encoding="utf-8"))
            file_name = as_utf8(path.absolute().relative_to(folder))
            images.append({"id": number, "file_name": file_name, "width": photo["width"], "height": photo["height"]})
            for feature in photo["features"]:
                rows.writerow(feature["properties"] | {"photo": cell(printable(as_utf8(path)))})
                n_annotations += 1
                size = photo["width"], photo["height"]
                annotation = {"id": n_annotations, "image_id": number, **_annotation(feature, size)}
                coco.write(f"{',' * (n_annotations > 1)}\n{json.dumps(annotation)}")
            found.add(path, name, photo["features"])
        categories = [{"id": 1, "name": "crack", "supercategory": "defect"}]
        coco.write(f'\n], "images": {json.dumps(images)}, "categories": {json.dumps(categories)}}}\n')
    return found


def _annotation(feature: Feature, size: tuple[int, int]) -> dict[str, Any]:
    """Return a crack as an annotation of COCO: the polygon that it covers, within a photo of (width, height)."""
    properties = feature["properties"]
    points = np.array(feature["geometry"]["coordinates"]) + PIXEL_CENTRE
    polygon = outline(points, np.array(properties["widths_px"])).clip(0, size)
    left, top = polygon.min(axis=0)
    width, height = polygon.max(axis=0) - (left, top)
    x, y = polygon.T
    return {
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": [polygon.round(2).ravel().tolist()],
        "bbox": [round(float(value), 2) for value in (left, top, width, height)],
        "area": round(float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2), 1),
        "score": properties["confidence"],
        "attributes": {name: properties[name] for name in ("length", "width", "width_class")},
    }
