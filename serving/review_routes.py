"""The route that makes a batch for `ingest` from a reviewer's labels: an archive of the tiles and `reviews.csv`.

A tile is a PNG with the pixels of the photo, so that the same tile of a photo is always the same file: reviewers who
disagree are found by its hash. A tile that covers all of a file is that file, so that the review of an image of a data
set corrects its label. Decisions about crack lines are in `lines.geojson`, which is not trained on.
"""

import asyncio
import csv
import hashlib
import io
import logging
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial as bound
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    StringConstraints,
    field_validator,
    model_validator,
)

from pipeline.crack_maps.line_files import Feature, feature_collection, line_feature
from pipeline.data.image_names import IMAGE_SUFFIXES
from pipeline.data.images import Pixels, encode_png
from pipeline.data.reviews import COLUMNS, REVIEWS_FILE
from pipeline.files import replacing, write_text
from pipeline.inbox.batches import COMPLETION_SUFFIX
from pipeline.params import Label
from pipeline.safe_text import cell, printable
from serving.app_state import State
from serving.limits import Check, in_thread
from serving.problems import V1_PROBLEMS, Problem
from serving.scoring_routes import Line
from serving.uploads import MEGA, Files, Upload

log = logging.getLogger(__name__)

ZIP = "application/zip"
LINES_FILE = "lines.geojson"
BINARY = {"type": "string", "format": "binary"}
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time of the format: equal reviews make equal archives
MAX_TILES_MEGAPIXELS = 60  # of a request, held in memory three times while the archive is made
router = APIRouter(prefix="/v1", responses=V1_PROBLEMS)
# No first character that a spreadsheet takes for a formula, and no control characters.
Reviewer = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[\w][^\x00-\x1f\x7f]*$"),
    AfterValidator(printable),
]


Coordinate = Annotated[float, Field(ge=-100, le=100_100)]  # px; the course of a crack at the edge may leave the photo


class ReviewedTile(BaseModel):
    """A square of a photo, in pixels of the upright photo, and the reviewer's label."""

    model_config = ConfigDict(extra="forbid")

    file: int = Field(ge=0, description="position of the photo among the files of the request")
    x: int = Field(ge=0, le=100_000)
    y: int = Field(ge=0, le=100_000)
    size: int = Field(ge=32, le=4096)
    label: Label


class ReviewedLine(Line):
    """A crack line as `/v1/map` answered it, and the reviewer's decision: whether there is a crack along it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=100)

    points: list[tuple[Coordinate, Coordinate]] = Field(min_length=2, max_length=100_000)
    file: int = Field(ge=0, description="position of the photo among the files of the request")
    decision: Literal["accepted", "rejected"]

    @field_validator("length", "width", "width_p95", "width_class", "stroke")
    @classmethod
    def _make_printable(cls, text: str | None) -> str | None:
        return text and printable(text)


class Reviews(BaseModel):
    """The labels of one reviewer."""

    model_config = ConfigDict(extra="forbid")

    reviewer: Reviewer
    model_version: str = Field(max_length=40, pattern=r"^\w*$", description="version that made the map")
    tiles: list[ReviewedTile] = Field(max_length=5000)
    lines: list[ReviewedLine] = Field(default=[], max_length=5000)

    @model_validator(mode="after")
    def _check_not_empty(self) -> "Reviews":
        if not self.tiles and not self.lines:
            raise ValueError("neither tiles nor lines have an entry: label a tile, or decide about a line")
        return self


class ReviewsAnswer(BaseModel):
    """The batch in the inbox."""

    batch: str = Field(description="name of the batch in the inbox of the retraining flow")
    n_crack: int
    n_intact: int


@dataclass(frozen=True)
class LabelledTile:
    """A tile as PNG bytes, and its row of reviews.csv."""

    row: dict[str, str]
    content: bytes


@router.post(
    "/reviews",
    status_code=HTTPStatus.CREATED,
    response_model=ReviewsAnswer,
    responses={
        200: {"description": "The batch, if there is no inbox or it has no tiles", "content": {ZIP: {"schema": BINARY}}}
    },
)
async def review(
    state: State,
    files: Files,
    reviews: Annotated[
        Json[Reviews], Form(description="JSON: a label for each reviewed tile, a decision for each line")
    ],
) -> Response:
    """Make a batch to train on from a reviewer's labels, in the inbox or, if none is configured, in the answer.

    Decisions about lines are in the batch and not trained on; without labels of tiles they are in the answer.
    """
    n_pixels = sum(tile.size**2 for tile in reviews.tiles)
    if n_pixels > MAX_TILES_MEGAPIXELS * MEGA:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The tiles have {n_pixels // MEGA} megapixels, more than {MAX_TILES_MEGAPIXELS}. Send fewer at once.",
        )
    uploads = await state.photo_decoder.read(files, state.settings.max_files)
    positions = [*(tile.file for tile in reviews.tiles), *(line.file for line in reviews.lines)]
    if max(positions) >= len(uploads):
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"The file of a tile or line is not among the {len(files)} sent."
        )
    now = datetime.now(UTC)
    labelled: list[LabelledTile] = []
    async with state.archiving:
        for number, upload in enumerate(uploads):
            tiles = [tile for tile in reviews.tiles if tile.file == number]
            if tiles:
                async with state.photo_decoder.decoded(upload) as pixels:
                    labelled += await in_thread(bound(_cut_all, upload, pixels, tiles, reviews, now))
        lines = [_decided(line, uploads[line.file].name, reviews, now) for line in reviews.lines]
        archive = await in_thread(lambda _: write_archive(labelled, lines))
    name = await asyncio.to_thread(batch_name, archive, now)
    if state.settings.inbox is None or not labelled:  # there is nothing to train on
        return Response(archive, media_type=ZIP, headers={"Content-Disposition": f'attachment; filename="{name}.zip"'})
    try:
        await asyncio.to_thread(write_to_inbox, state.settings.inbox, name, archive)
    except OSError:
        log.exception("The inbox %s cannot be written to", state.settings.inbox)
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE, "The labels cannot be stored now. Keep the page open and try again later."
        ) from None
    n_crack = sum(tile.row["label"] == "crack" for tile in labelled)
    answer = ReviewsAnswer(batch=name, n_crack=n_crack, n_intact=len(labelled) - n_crack)
    return Response(answer.model_dump_json(), HTTPStatus.CREATED, media_type="application/json")


def _cut_all(
    photo: Upload,
    pixels: Pixels,
    tiles: Sequence[ReviewedTile],
    reviews: Reviews,
    now: datetime,
    check: Check,
) -> list[LabelledTile]:
    labelled = []
    for tile in tiles:
        check()
        labelled.append(cut_tile(photo, pixels, tile, reviews, now))
    return labelled


def cut_tile(photo: Upload, pixels: Pixels, tile: ReviewedTile, reviews: Reviews, now: datetime) -> LabelledTile:
    """Return a labelled tile of a photo of these pixels, uint8 (height, width, 3). Raises Problem if it exceeds it."""
    height, width, _ = pixels.shape
    if tile.x + tile.size > width or tile.y + tile.size > height:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"A tile of {tile.size} px at ({tile.x}, {tile.y}) lies outside {photo.name}, {width} x {height} px.",
        )
    name = PurePosixPath(photo.name)
    if height == width == tile.size:
        content, suffix = photo.content, name.suffix if name.suffix.lower() in IMAGE_SUFFIXES else ".jpg"
    else:
        content, suffix = encode_png(pixels[tile.y : tile.y + tile.size, tile.x : tile.x + tile.size]), ".png"
    sha256 = hashlib.sha256(content).hexdigest()
    stem = re.sub(r"[^\w.-]", "_", name.stem)[:80]
    row = {
        "path": f"{tile.label}/{stem}-{tile.x}-{tile.y}-{sha256[:8]}{suffix}",
        "label": tile.label,
        "reviewer": reviews.reviewer,
        "time": now.isoformat(timespec="seconds"),
        "sha256": sha256,
        "photo": photo.name,
        "model_version": reviews.model_version,
    }
    return LabelledTile(row, content)


def _decided(line: ReviewedLine, photo: str, reviews: Reviews, now: datetime) -> Feature:
    """Return a line with its properties and the reviewer's decision as GeoJSON."""
    provenance = {"photo": photo, "reviewer": reviews.reviewer, "time": now.isoformat(timespec="seconds")}
    decided = line.model_dump(exclude={"points", "file"}) | provenance | {"model_version": reviews.model_version}
    return line_feature(line.points, decided)


def write_archive(tiles: Sequence[LabelledTile], lines: Sequence[Feature]) -> bytes:
    """Return the archive of a batch; a tile that was labelled alike twice is written once."""
    by_path = {tile.row["path"]: tile for tile in tiles}
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(text) for name, text in tile.row.items()} for tile in by_path.values())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: PNG is compressed already
        archive.writestr(zipfile.ZipInfo(REVIEWS_FILE, ZIP_TIME), table.getvalue())
        for path, tile in by_path.items():
            archive.writestr(zipfile.ZipInfo(path, ZIP_TIME), tile.content)
        if lines:
            archive.writestr(zipfile.ZipInfo(LINES_FILE, ZIP_TIME), feature_collection(lines))
    return buffer.getvalue()


def batch_name(archive: bytes, now: datetime) -> str:
    """Return the name of a batch: sorts by time, unique by the hash of the archive."""
    return f"reviews-{now:%Y%m%dT%H%M%SZ}-{hashlib.sha256(archive).hexdigest()[:8]}"


def write_to_inbox(inbox: Path, name: str, archive: bytes) -> None:
    """Write a batch, then its completion marker."""
    with replacing(inbox / f"{name}.zip") as partial:
        partial.write_bytes(archive)
    write_text(inbox / f"{name}.zip{COMPLETION_SUFFIX}", "")
