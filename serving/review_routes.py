"""The route that turns a reviewer's labels into a batch."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial as bound
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from pydantic import Json

from serving.app_state import state_of
from serving.limits import GivenUpError, in_thread
from serving.problems import V1_PROBLEMS, Problem
from serving.review_batches import (
    LabelledTile,
    ReviewedTile,
    Reviews,
    ReviewsAnswer,
    batch_name,
    cut_tile,
    put_into_inbox,
    write_archive,
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
    responses={200: {"description": "The batch, for the reviewer to keep", "content": {ZIP: {"schema": BINARY}}}},
)
async def review(
    request: Request,
    files: Files,
    reviews: Annotated[Json[Reviews], Form(description="JSON: what was seen in which tile of which file")],
) -> Response:
    """Turn what a person saw in tiles into a batch to train on: into the inbox, or, where there is none, the answer."""
    state = state_of(request)
    uploads = await read_uploads(files, state.settings.max_files, state.settings.max_photo_megapixels)
    now = datetime.now(UTC)
    labelled: list[LabelledTile] = []
    for number, upload in enumerate(uploads):
        tiles = [tile for tile in reviews.tiles if tile.file == number]
        if tiles:
            async with state.decoder.decoded(upload) as pixels:
                cut = bound(cut_tile, upload.name, pixels, reviews=reviews, now=now)
                labelled += await in_thread(bound(_all_cut, cut, tiles))
    if len(labelled) < len(reviews.tiles):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"A tile is of a file that is not among the {len(files)} sent.")
    archive = await asyncio.to_thread(write_archive, labelled)
    name = batch_name(archive, now)
    if state.settings.inbox is None:
        return Response(archive, media_type=ZIP, headers={"Content-Disposition": f'attachment; filename="{name}.zip"'})
    try:
        await asyncio.to_thread(put_into_inbox, state.settings.inbox, name, archive)
    except OSError:
        log.exception("The inbox %s cannot be written to", state.settings.inbox)
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE, "The labels cannot be stored now. Keep the page open and try again later."
        ) from None
    n_crack = sum(tile.row.label == "crack" for tile in labelled)
    answer = ReviewsAnswer(batch=name, n_crack=n_crack, n_intact=len(labelled) - n_crack)
    return Response(answer.model_dump_json(), HTTPStatus.CREATED, media_type="application/json")


def _all_cut(
    cut: Callable[[ReviewedTile], LabelledTile], tiles: Sequence[ReviewedTile], is_given_up: threading.Event
) -> list[LabelledTile]:
    labelled = []
    for tile in tiles:
        if is_given_up.is_set():
            raise GivenUpError
        labelled.append(cut(tile))
    return labelled
