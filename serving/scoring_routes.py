"""Routes that score uploads: single images, and the tiles of a photo."""

import asyncio
import base64
import io
import threading
from datetime import UTC, datetime
from functools import partial as bound
from http import HTTPStatus
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, File, Query, UploadFile
from PIL import Image

from pipeline.crack_maps.crack_map import CrackMap
from pipeline.data.images import Pixels
from pipeline.errors import CracksError
from pipeline.evaluation.examples import occlusion_overlay
from pipeline.evaluation.occlusion import occlusion_map
from pipeline.inference.openvino_cpu import Outputs
from serving.answers import MapAnswer, OcclusionOverlay, PredictAnswer, Prediction, Tile
from serving.app_state import AppState, State
from serving.current_model import LoadedModel
from serving.limits import WorkCancelledError, in_thread
from serving.problems import V1_PROBLEMS, Problem
from serving.recording import ScoredImage
from serving.uploads import Files, Upload, read_uploads

MAX_PREVIEW_PX = 2048  # of the longer side
MAX_EXPLAINED_PX = 512  # of the longer side: more detail is not needed, and occlusion scores the image 50 times
router = APIRouter(prefix="/v1", responses=V1_PROBLEMS)


@router.post("/predict", response_model_exclude_none=True)
async def predict(
    state: State,
    files: Files,
    explain: Annotated[bool, Query(description="add an occlusion overlay to each prediction")] = False,
) -> PredictAnswer:
    """Return the probability of a crack for each image. For whole photos use `/v1/map`."""
    loaded = state.loaded_model()
    uploads = await read_uploads(files, state.settings.max_files, state.settings.max_image_megapixels)
    predictions = await asyncio.gather(*(_predict_one(state, loaded, upload, explain) for upload in uploads))
    return PredictAnswer(model_version=loaded.version.number, predictions=list(predictions))


async def _predict_one(state: AppState, loaded: LoadedModel, upload: Upload, explain: bool) -> Prediction:
    async with state.decoder.decoded(upload) as pixels:
        output = await state.batcher.submit(loaded.model, pixels)
        overlay = await in_thread(lambda _: _explain(loaded, pixels)) if explain else None
    state.recorder.put(
        ScoredImage(
            time=datetime.now(UTC),
            model_version=loaded.version.number,
            source="predict",
            photo=upload.name,
            pixels=pixels,
            content=upload.content,
            probability=output.probability,
            features=output.features,
        )
    )
    label = loaded.model.decision.verdict(output.probability)
    state.metrics.images.labels(label).inc()
    return Prediction(file=upload.name, probability=output.probability, label=label, overlay=overlay)


def _explain(loaded: LoadedModel, pixels: Pixels) -> OcclusionOverlay:
    small: Pixels = np.asarray(_shrunk(pixels, MAX_EXPLAINED_PX))
    overlay = occlusion_map(lambda batch: loaded.model.outputs(batch)["probability"], small)
    return OcclusionOverlay(
        logits=overlay.tolist(), image=_data_url(Image.fromarray(occlusion_overlay(small, overlay)), "PNG")
    )


def _data_url(picture: Image.Image, file_format: Literal["JPEG", "PNG"]) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, file_format)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@router.post("/map")
async def crack_map(
    state: State,
    file: Annotated[UploadFile, File(description="a whole photo")],
    preview: Annotated[bool, Query(description="add the photo as a JPEG, if its format cannot be displayed")] = False,
    mm_per_px: Annotated[
        float | None, Query(gt=0, le=1000, description="ground resolution of the photo, if known")
    ] = None,
) -> MapAnswer:
    """Return the probability of a crack for each tile of a photo."""
    loaded = state.loaded_model()
    [upload] = await read_uploads([file], 1, state.settings.max_photo_megapixels)
    async with state.decoder.decoded(upload) as pixels:
        crack_map = await in_thread(bound(_mapped, state, loaded, upload.name, pixels, mm_per_px))
        shown = await in_thread(lambda _: _data_url(_shrunk(pixels, MAX_PREVIEW_PX), "JPEG")) if preview else None
    return MapAnswer(
        file=upload.name,
        width=crack_map.width_px,
        height=crack_map.height_px,
        model_version=loaded.version.number,
        cracked_share=crack_map.share_of_area("crack"),
        tiles=[Tile.model_validate(row) for row in crack_map.tiles.to_dict(orient="records")],
        notes=crack_map.notes(),
        preview=shown,
    )


def _mapped(
    state: AppState,
    loaded: LoadedModel,
    photo: str,
    pixels: Pixels,
    mm_per_px: float | None,
    is_cancelled: threading.Event,
) -> CrackMap:
    now = datetime.now(UTC)

    def record(tiles: Pixels, outputs: Outputs) -> None:
        if is_cancelled.is_set():
            raise WorkCancelledError
        for tile, probability, features in zip(tiles, outputs["probability"], outputs["features"], strict=True):
            state.recorder.put(
                ScoredImage(now, loaded.version.number, "map", photo, tile, None, float(probability), features)
            )

    try:
        crack_map = loaded.mapper.map(pixels, mm_per_px, record)
    except CracksError as error:  # the photo is too small, or mm_per_px would resize it too much
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
    for label, count in crack_map.tiles["label"].value_counts().items():
        state.metrics.images.labels(str(label)).inc(count)
    return crack_map


def _shrunk(pixels: Pixels, max_side_px: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((max_side_px, max_side_px))
    return picture
