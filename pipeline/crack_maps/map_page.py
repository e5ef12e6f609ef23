"""The overview page of crack maps: one HTML file that works offline, the most cracked photo first."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.image_names import OVERLAY_SUFFIX
from pipeline.data.images import Pixels
from pipeline.page import template

MAX_CARDS = 200  # of 15 kB each: a page of thousands would not open
MAX_ERRORS = 100
THUMBNAIL_PX = 480


def render_maps(out: Path, summary: pd.DataFrame, model: str, missed: list[str], correction: dict[str, float]) -> str:
    """Return the page as HTML, for the maps in the folder `out` in the order of `summary`, the table of summary.csv.

    `missed` has the sentences of `missed_cracks` about the model; `correction` is that of `Decision.correction`.
    """
    mapped, failed = summary[summary["error"] == ""], summary[summary["error"] != ""]
    return template("crack_maps/map.html.j2").render(
        model=model,
        missed=missed,
        correction=correction,
        is_drawn="(demo)" in model,
        cards=_cards(out, mapped["name"].head(MAX_CARDS)),
        cards_shown=min(MAX_CARDS, len(mapped)),
        n_mapped=len(mapped),
        n_cracked=int((mapped["n_crack"] > 0).sum()),
        n_crack=int(mapped["n_crack"].sum()),
        n_review=int(mapped["n_review"].sum()),
        n_undecided=int(mapped["n_undecided"].sum()),
        n_tiles=int(mapped["n_tiles"].sum()),
        failed=list(failed.head(MAX_ERRORS).itertuples()),
        n_failed=len(failed),
    )


def _cards(out: Path, names: "pd.Series[str]") -> Iterator[dict[str, Any]]:
    for name in names:
        report = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        links = {ending: quote(f"{name}{ending}") for ending in (OVERLAY_SUFFIX, ".tiles.csv", ".json")}
        yield {**report, "name": name, "links": links, "thumbnail": _thumbnail(out / f"{name}{OVERLAY_SUFFIX}")}


def _thumbnail(path: Path) -> Pixels:
    with Image.open(path) as image:
        image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # decodes at a reduced size, in a tenth of the time
        return np.asarray(image.convert("RGB"))
