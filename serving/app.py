"""The routes: what can be asked, and how an answer is put together."""

import asyncio
import base64
import io
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial as bound
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import Json

import pipeline
from pipeline.crack_maps.crack_map import CrackMap
from pipeline.crack_maps.map_notes import warnings_of
from pipeline.data.images import Pixels
from pipeline.errors import CracksError
from pipeline.evaluation.occlusion import occlusion_map
from pipeline.evaluation.occlusion_overlay import occlusion_overlay
from pipeline.inference.openvino_cpu import Outputs
from pipeline.monitoring import heartbeat_watch
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import Serve
from serving import problems
from serving.answers import Heat, MapAnswer, ModelAnswer, PredictAnswer, Prediction, Tile, model_answer
from serving.batching import Batcher
from serving.holder import Held, ModelHolder
from serving.kept_images import FOLDER, KeptImages
from serving.limits import RETRY_AFTER_S, Gate, GivenUpError, PixelBudget, SecurityHeaders, in_thread
from serving.problems import Problem, documented
from serving.prometheus_metrics import Measured, Metrics
from serving.recording import Recorder, Seen
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
from serving.uploads import MEGA, Decoder, Upload, read_uploads

log = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
ZIP = "application/zip"
BINARY = {"type": "string", "format": "binary"}
MAX_PREVIEW_PX = 2048  # of the longer side
MAX_EXPLAINED_PX = 512  # of the longer side: what explains a picture need not be larger, and is computed 50 times
PROBLEMS = documented(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
Files = Annotated[list[UploadFile], File(description="JPEG, PNG, WebP, TIFF or BMP")]
api = APIRouter(prefix="/v1", responses=PROBLEMS)
site = APIRouter()


class AppState:
    """What the routes work with; one for each app."""

    def __init__(self, settings: Serve, holder: ModelHolder, prediction_log: PredictionLog) -> None:
        self.settings = settings
        self.holder = holder
        self.metrics = Metrics(holder)
        self.batcher = Batcher(settings.batch_wait_ms, settings.max_batch_images, self.metrics.batch.observe)
        self.decoder = Decoder(PixelBudget(settings.max_decoded_megapixels * MEGA))
        max_mb = settings.kept_images_mb
        images = None if max_mb is None else KeptImages(prediction_log.folder / FOLDER, max_mb)
        self.recorder = Recorder(prediction_log, images, self.metrics.dropped.inc)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to hold a model, to write the log, and to watch whether the schedules are alive."""
        self.holder.start()
        self.recorder.start()
        threading.Thread(target=heartbeat_watch.follow, args=(self._stopping,), name="watch", daemon=True).start()

    def stop(self) -> None:
        """End everything that was begun, when the last request is answered; a message under way is not waited for."""
        self._stopping.set()
        self.holder.stop()
        self.batcher.close()
        self.decoder.close()
        self.recorder.stop()

    def held(self) -> Held:
        """Return the model that answers. Raises Problem while there is none."""
        if self.holder.current is None:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "There is no model yet. Register one with `make run`, or wait until the registry answers.",
                retry_after_s=RETRY_AFTER_S,
            )
        return self.holder.current


def create_app(settings: Serve, holder: ModelHolder, prediction_log: PredictionLog, api_key: str | None) -> FastAPI:
    """Return the API and its page; `holder` is started and stopped with it."""
    state = AppState(settings, holder, prediction_log)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.start()
        yield
        state.stop()

    app = FastAPI(
        title="Concrete cracks",
        description="Where photos of concrete are cracked.",
        version=pipeline.__version__,
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.state = state
    problems.install(app)
    app.include_router(api)
    app.include_router(site)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(
        Gate,
        api_key=api_key,
        max_body_mb=settings.max_body_mb,
        max_seconds=settings.max_seconds,
        max_requests=settings.max_requests,
    )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Measured, metrics=state.metrics)
    return app


def _state(request: Request) -> AppState:
    state: AppState = request.app.state.state
    return state


@api.post("/predict", response_model_exclude_none=True)
async def predict(
    request: Request,
    files: Files,
    explain: Annotated[bool, Query(description="add a overlay map to each prediction")] = False,
) -> PredictAnswer:
    """Say of each image how probable a crack is. For whole photos, ask for a map."""
    state = _state(request)
    held = state.held()
    uploads = await read_uploads(files, state.settings.max_files, state.settings.max_image_megapixels)
    predictions = await asyncio.gather(*(_predict_one(state, held, upload, explain) for upload in uploads))
    return PredictAnswer(model_version=held.version.number, predictions=list(predictions))


async def _predict_one(state: AppState, held: Held, upload: Upload, explain: bool) -> Prediction:
    async with state.decoder.decoded(upload) as pixels:
        output = await state.batcher.submit(held.model, pixels)
        overlay = await in_thread(lambda _: _explain(held, pixels)) if explain else None
    state.recorder.put(
        Seen(
            time=datetime.now(UTC),
            model_version=held.version.number,
            source="predict",
            photo=upload.name,
            pixels=pixels,
            content=upload.content,
            probability=output.probability,
            features=output.features,
        )
    )
    label = held.model.decision.verdict(output.probability)
    state.metrics.images.labels(label).inc()
    return Prediction(file=upload.name, probability=output.probability, label=label, overlay=overlay)


def _explain(held: Held, pixels: Pixels) -> Heat:
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_EXPLAINED_PX, MAX_EXPLAINED_PX))
    small: Pixels = np.asarray(picture)
    overlay = occlusion_map(lambda batch: held.model.outputs(batch)["probability"], small)
    return Heat(logits=overlay.tolist(), image=_data_url(Image.fromarray(occlusion_overlay(small, overlay)), "PNG"))


def _data_url(picture: Image.Image, file_format: Literal["JPEG", "PNG"]) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, file_format)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@api.post("/map")
async def crack_map(
    request: Request,
    file: Annotated[UploadFile, File(description="a whole photo")],
    preview: Annotated[bool, Query(description="add the photo as a JPEG, for who cannot show its format")] = False,
    mm_per_px: Annotated[
        float | None, Query(gt=0, le=1000, description="ground resolution of the photo, where it is known")
    ] = None,
) -> MapAnswer:
    """Say of each tile of a photo how probable a crack is."""
    state = _state(request)
    held = state.held()
    [upload] = await read_uploads([file], 1, state.settings.max_photo_megapixels)
    async with state.decoder.decoded(upload) as pixels:
        crack_map = await in_thread(bound(_mapped, state, held, upload.name, pixels, mm_per_px))
        picture = await in_thread(lambda _: _preview(pixels)) if preview else None
    return MapAnswer(
        file=upload.name,
        width=crack_map.width_px,
        height=crack_map.height_px,
        model_version=held.version.number,
        cracked_share=crack_map.share_of_area("crack"),
        tiles=[Tile.model_validate(row) for row in crack_map.tiles.to_dict(orient="records")],
        notes=warnings_of(crack_map),
        preview=picture,
    )


def _mapped(
    state: AppState, held: Held, photo: str, pixels: Pixels, mm_per_px: float | None, is_given_up: threading.Event
) -> CrackMap:
    now = datetime.now(UTC)

    def record(tiles: Pixels, outputs: Outputs) -> None:
        if is_given_up.is_set():
            raise GivenUpError
        for tile, probability, features in zip(tiles, outputs["probability"], outputs["features"], strict=True):
            state.recorder.put(Seen(now, held.version.number, "map", photo, tile, None, float(probability), features))

    try:
        crack_map = held.mapper.map(pixels, mm_per_px, record)
    except CracksError as error:  # too small, or resized out of all proportion
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
    for label, count in crack_map.tiles["label"].value_counts().items():
        state.metrics.images.labels(str(label)).inc(count)
    return crack_map


def _preview(pixels: Pixels) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_PREVIEW_PX, MAX_PREVIEW_PX))
    return _data_url(picture, "JPEG")


@api.post(
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
    state = _state(request)
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


@api.get("/model")
async def model(request: Request) -> ModelAnswer:
    """Say which model answers, and when its probability means a crack."""
    state = _state(request)
    return model_answer(state.held(), state.holder.refused, state.settings)


@site.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> str:
    """Say that the process lives."""
    return "alive\n"


@site.get("/readyz", response_class=PlainTextResponse, responses=documented(HTTPStatus.SERVICE_UNAVAILABLE))
async def readyz(request: Request) -> str:
    """Say whether there is a model to answer with."""
    return f"serving {_state(request).held().version}\n"


@site.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return the counters in Prometheus' text format."""
    return Response(_state(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@site.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(STATIC / "index.html")
