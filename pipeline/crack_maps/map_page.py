"""The overview page of crack maps: one HTML file that works offline, the most cracked photo first."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.crack_maps.crack_map import NO_PROOF
from pipeline.crack_maps.crack_properties import UNDER_PX, colours, length_text
from pipeline.crack_maps.line_files import Feature, FoundCracks
from pipeline.crack_maps.photo_files import REPORT_SUFFIX, SUFFIXES
from pipeline.data.image_names import OVERLAY_SUFFIX
from pipeline.data.images import Pixels, UnreadableImageError
from pipeline.data.photos import read_photo
from pipeline.data.sources import read_image_file
from pipeline.page import template
from pipeline.params import Map
from pipeline.safe_text import as_utf8

Row = dict[str, str]  # column -> length

MAX_CARDS = 200  # of 15 kB each: a page of thousands would not open
MAX_ERRORS = 100
THUMBNAIL_PX = 480
CLOSE_UP_PX = 256


def render_maps(
    out: Path,
    summary: pd.DataFrame,
    model: str,
    missed: list[str],
    correction: dict[str, float],
    found: FoundCracks,
    params: Map,
    mm_per_px: float | None,
) -> str:
    """Return the page as HTML, for the maps in the folder `out` in the order of `summary`, the table of summary.csv.

    `missed` has the sentences of `missed_cracks` about the model; `correction` is that of `Decision.correction`;
    `mm_per_px` is the scale of the photos.
    """
    mapped, failed = summary[summary["error"] == ""], summary[summary["error"] != ""]
    return template("crack_maps/map.html.j2").render(
        model=model,
        missed=missed,
        no_proof=NO_PROOF,
        correction=correction,
        is_drawn="(demo)" in model,
        cards=_cards(out, mapped["name"].head(MAX_CARDS)),
        lengths=_lengths(found, list(mapped["name"].head(MAX_CARDS)), params, mm_per_px),
        widest=_close_ups(found),
        width_classes=params.width_classes if mm_per_px else (),
        colours=colours(params.width_classes),
        cards_shown=min(MAX_CARDS, len(mapped)),
        n_mapped=len(mapped),
        n_cracked=int((mapped["n_crack"] > 0).sum()),
        n_crack=int(mapped["n_crack"].sum()),
        n_review=int(mapped["n_review"].sum()),
        n_undecided=int(mapped["n_undecided"].sum()),
        n_lines=int(mapped["n_lines"].sum()),
        under_px=UNDER_PX,
        n_tiles=int(mapped["n_tiles"].sum()),
        failed=list(failed.head(MAX_ERRORS).itertuples()),
        n_failed=len(failed),
    )


def _cards(out: Path, names: "pd.Series[str]") -> Iterator[dict[str, Any]]:
    for name in names:
        report = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        links = {ending: quote(f"{name}{ending}") for ending in (*SUFFIXES, REPORT_SUFFIX)}
        yield {**report, "name": name, "links": links, "thumbnail": _thumbnail(out / f"{name}{OVERLAY_SUFFIX}")}


def _lengths(found: FoundCracks, names: list[str], params: Map, mm_per_px: float | None) -> list[tuple[str, Row]]:
    """Return the length of the cracks of each photo that has any, in all and by width class, then that of all photos.

    All is for people to read, with its unit.
    """
    totals: Counter[str | None] = Counter()
    for lengths in found.lengths_px.values():
        totals.update(lengths)
    classes = [name for name in (UNDER_PX, *colours(params.width_classes)) if name in totals]
    rows: list[tuple[str, Mapping[str | None, float]]] = [
        (name, found.lengths_px[name]) for name in names if found.lengths_px[name]
    ]
    rows += [(f"all {len(found.lengths_px):,} photos", totals)] if len(rows) > 1 else []

    return [
        (
            name,
            {"total": length_text(sum(lengths.values()), mm_per_px)}
            | {one: length_text(lengths.get(one, 0), mm_per_px) for one in classes},
        )
        for name, lengths in rows
    ]


def _close_ups(found: FoundCracks) -> list[dict[str, Any]]:
    """Return each of the widest cracks with the photo around it."""
    close_ups = {}
    for path in {path for path, _ in found.widest}:  # each photo is decoded once
        with suppress(UnreadableImageError):  # it has changed since it was mapped
            content = read_image_file(path)
            pixels = read_photo(b"" if isinstance(content, str) else content).pixels
            for number, (its_path, feature) in enumerate(found.widest):
                if its_path == path:
                    close_ups[number] = {
                        "photo": as_utf8(Path(path.name)),
                        **feature["properties"],
                        **_close_up(pixels, feature),
                    }
    return [close_ups[number] for number in sorted(close_ups)]


def _close_up(pixels: Pixels, feature: Feature) -> dict[str, Any]:
    """Return the photo around the place where a crack is as wide as its 95th percentile, and its course there."""
    crack, points = feature["properties"], np.array(feature["geometry"]["coordinates"])
    at = int(np.abs(np.array(crack["widths_px"]) - crack["width_p95_px"]).argmin())
    height, width, _ = pixels.shape
    side = min(CLOSE_UP_PX, height, width)
    left, top = (points[at] - side / 2).round().clip(0, (width - side, height - side)).astype(int).tolist()
    course = points + 0.5 - (left, top)  # in SVG, the corner of the first pixel is (0, 0)
    outside = np.flatnonzero(((course < 0) | (course > side)).any(axis=1))
    shown = course[max(outside[outside < at], default=-1) + 1 : min(outside[outside > at], default=len(course))]
    part = pixels[top : top + side, left : left + side].copy()  # of the photo nothing else stays in memory
    return {"pixels": part, "side": side, "course": shown.round(1).tolist()}


def _thumbnail(path: Path) -> Pixels:
    with Image.open(path) as image:
        image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # decodes at a reduced size, in a tenth of the time
        return np.asarray(image.convert("RGB"))
