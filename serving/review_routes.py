"""The route that makes a batch from a reviewer's labels."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial as bound
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Response
from pydantic import Json

from serving.app_state import State
from serving.limits import WorkCancelledError, in_thread
from serving.problems import V1_PROBLEMS, Problem
from serving.review_batches import (
    LabelledTile,
    ReviewedTile,
    Reviews,
    ReviewsAnswer,
    batch_name,
    cut_tile,
    write_archive,
    write_to_inbox,
)
from serving.uploads import Files, read_uploads

log = logging.getLogger(__name__)

ZIP = "application/zip"
BINARY = {"type": "string", "format": "binary"}
router = APIRouter(prefix="/v1", responses=V1_PROBLEMS)


@router.post(
    "/reviews",
    status_code=HTTPStatus.CREATED,
    response_model=ReviewsAnswer,
    responses={200: {"description": "The batch, if there is no inbox", "content": {ZIP: {"schema": BINARY}}}},
)
async def review(
    state: State,
    files: Files,
    reviews: Annotated[Json[Reviews], Form(description="JSON: a label for each reviewed tile")],
) -> Response:
    """Make a batch to train on from a reviewer's labels, in the inbox or, if none is configured, in the answer."""
    uploads = await read_uploads(files, state.settings.max_files, state.settings.max_photo_megapixels)
    now = datetime.now(UTC)
    labelled: list[LabelledTile] = []
    for number, upload in enumerate(uploads):
        tiles = [tile for tile in reviews.tiles if tile.file == number]
        if tiles:
            async with state.decoder.decoded(upload) as pixels:
                cut = bound(cut_tile, upload.name, pixels, reviews=reviews, now=now)
                labelled += await in_thread(bound(_cut_all, cut, tiles))
    if len(labelled) < len(reviews.tiles):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"The file of a tile is not among the {len(files)} sent.")
    archive = await asyncio.to_thread(write_archive, labelled)
    name = batch_name(archive, now)
    if state.settings.inbox is None:
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
    cut: Callable[[ReviewedTile], LabelledTile], tiles: Sequence[ReviewedTile], is_cancelled: threading.Event
) -> list[LabelledTile]:
    labelled = []
    for tile in tiles:
        if is_cancelled.is_set():
            raise WorkCancelledError
        labelled.append(cut(tile))
    return labelled
