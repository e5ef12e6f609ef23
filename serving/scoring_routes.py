"""Routes that score uploads, single images and the tiles of a photo, and that describe the model."""

import asyncio
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial as bound
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, File, Query, UploadFile
from pydantic import BaseModel, Field

from pipeline.crack_maps.crack_map import CrackMap, TileLabel
from pipeline.crack_maps.crack_properties import CrackProperties
from pipeline.data.images import Pixels
from pipeline.data.photos import photographed
from pipeline.errors import CracksError
from pipeline.inference.openvino_cpu import Outputs
from pipeline.models.decision import Verdict
from serving.app_state import AppState, State
from serving.current_model import LoadedModel
from serving.limits import Check, in_thread
from serving.overlays import OcclusionOverlay, data_url, explained, shrunk
from serving.problems import V1_PROBLEMS, Problem
from serving.recording import ScoredImage
from serving.uploads import MEGA, Files, Upload

IN_DISTRIBUTION = "whether it is similar to the images that the model was validated on; absent or null: not recorded"
MAX_PREVIEW_PX = 2048  # of the longer side
Prevalence = Annotated[
    float | None,
    Query(gt=0, lt=1, description="share of cracks that you expect, for which probabilities are corrected"),
]
router = APIRouter(prefix="/v1", responses=V1_PROBLEMS)


class ModelAnswer(BaseModel):
    """The model that answers."""

    name: str
    version: str
    description: str = Field(description="name, version and state for display")
    trained_on: str
    is_production: bool
    since: datetime = Field(description="when this server started to use it")
    threshold: float = Field(description="an image with at least this probability is called a crack")
    review_from: float = Field(description="from here to below review_to the label is `review`")
    review_to: float
    image_size_px: int = Field(description="side to which the network resizes an image")
    refused: str | None = Field(description="version to be served that was refused because it is broken")
    max_body_mb: int = Field(description="of a request")
    max_files: int = Field(description="of a request")


class Prediction(BaseModel):
    """Probability and label of one image."""

    file: str
    probability: float = Field(ge=0, le=1)
    label: Verdict = Field(description="`review`: the model is unsure, or the image is unlike its training images")
    in_distribution: bool | None = Field(default=None, description=IN_DISTRIBUTION)
    overlay: OcclusionOverlay | None = None


class Corrected(BaseModel):
    """An answer of one model, of which the probabilities may be corrected for a stated share of cracks."""

    model_version: str
    prevalence: float | None = Field(default=None, description="share of cracks that probabilities are corrected for")
    assumed_prevalence: float | None = Field(default=None, description="the one that the model assumes by itself")


class PredictAnswer(Corrected):
    """Predictions for all files of a request, in their order."""

    predictions: list[Prediction]


class Tile(BaseModel):
    """A square of the photo, in pixels of the upright photo."""

    row: int
    col: int
    x: int
    y: int
    size: int
    probability: float = Field(ge=0, le=1)
    label: TileLabel = Field(
        description="`review`: see `in_distribution`, else the model is unsure; `undecided`: it is unsure of too many "
        "tiles for a person to look at, and this one is less likely a crack than those for review"
    )
    in_distribution: bool | None = Field(description=IN_DISTRIBUTION)
    has_line: bool = Field(description="whether a crack line runs through it; false, too, where none was searched for")


class Line(CrackProperties):
    """A crack of the photo: its course, and what is said of it."""

    points: list[tuple[float, float]] = Field(
        min_length=2, max_length=100_000, description="x, y in pixels of the upright photo, whose centres are integers"
    )


class MapAnswer(Corrected):
    """Crack map of one photo."""

    file: str
    width: int
    height: int
    cracked_share: float = Field(ge=0, le=1, description="share of the photographed area under tiles of label `crack`")
    tiles: list[Tile]
    lines: list[Line] = Field(description="the cracks that were found; no line is no proof that there is no crack")
    notes: list[str] = Field(description="caveats to show with the map")
    preview: str | None = Field(description="data URL of a JPEG of the photo, made smaller")


@router.get("/model")
async def model(state: State) -> ModelAnswer:
    """Return the current model, its threshold and review band, and the limits of a request."""
    loaded, refused, settings = state.loaded_model(), state.holder.refused, state.settings
    version, decision = loaded.version, loaded.model.decision
    return ModelAnswer(
        name=version.name,
        version=version.number,
        description=str(version),
        trained_on=version.trained_on,
        is_production=version.is_production,
        since=loaded.since,
        threshold=decision.threshold,
        review_from=decision.review_from,
        review_to=decision.review_to,
        image_size_px=loaded.model.image_size_px,
        refused=None if refused is None else refused.number,
        max_body_mb=settings.max_body_mb,
        max_files=settings.max_files,
    )


@router.post("/predict", response_model_exclude_none=True)
async def predict(
    state: State,
    files: Files,
    explain: Annotated[bool, Query(description="add an occlusion overlay to each prediction")] = False,
    prevalence: Prevalence = None,
) -> PredictAnswer:
    """Return the probability of a crack for each image. For whole photos use `/v1/map`."""
    loaded = state.loaded_model()
    uploads = await state.image_decoder.read(files, state.settings.max_files)
    rank = sum(upload.n_pixels for upload in uploads) // MEGA  # little work is not delayed by much work
    try:
        correction = loaded.model.decision.correction(prevalence)
    except CracksError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
    scored = (_predict_one(state, loaded, upload, rank, explain, prevalence) for upload in uploads)
    predictions = list(await asyncio.gather(*scored))
    return PredictAnswer(model_version=loaded.version.number, predictions=predictions, **correction)


async def _predict_one(
    state: AppState, loaded: LoadedModel, upload: Upload, rank: int, explain: bool, prevalence: float | None
) -> Prediction:
    decoder = state.photo_decoder if explain else state.image_decoder  # an overlay takes as long as a map
    async with state.overlays if explain else nullcontext(), decoder.decoded(upload, rank) as pixels:
        output = await state.batcher.submit(loaded.model, pixels, prevalence)
        overlay = None
        if explain:
            overlay = await in_thread(lambda _: explained(loaded.model, pixels, state.settings.max_batch_images))
    state.recorder.put(
        ScoredImage(
            time=datetime.now(UTC),
            model_version=loaded.version.number,
            source="predict",
            photo=upload.name,
            pixels=pixels,
            content=upload.content,
            probability=output.uncorrected,
            features=output.features,
        )
    )
    state.metrics.images.labels(output.label).inc()
    return Prediction(
        file=upload.name,
        probability=output.probability,
        label=output.label,
        in_distribution=output.in_distribution,
        overlay=overlay,
    )


@router.post("/map")
async def crack_map(
    state: State,
    file: Annotated[UploadFile, File(description="a whole photo")],
    preview: Annotated[bool, Query(description="add the photo as a JPEG, if its format cannot be displayed")] = False,
    mm_per_px: Annotated[
        float | None, Query(gt=0, le=1000, description="ground resolution of the photo, if known")
    ] = None,
    prevalence: Prevalence = None,
) -> MapAnswer:
    """Return the probability of a crack for each tile of a photo, and the lines along which its cracks run."""
    loaded = state.loaded_model()
    [upload] = await state.photo_decoder.read([file], 1)
    async with state.photo_decoder.decoded(upload) as pixels:
        crack_map = await in_thread(bound(_mapped, state, loaded, upload, pixels, mm_per_px, prevalence))
        shown = await in_thread(lambda _: data_url(shrunk(pixels, MAX_PREVIEW_PX), "JPEG")) if preview else None
    return MapAnswer(
        file=upload.name,
        width=crack_map.width_px,
        height=crack_map.height_px,
        model_version=loaded.version.number,
        cracked_share=crack_map.share_of_area("crack"),
        tiles=[Tile.model_validate(row) for row in crack_map.tiles.to_dict(orient="records")],
        lines=[
            Line(points=line.points.round(1).tolist(), **crack.model_dump())
            for line, crack in zip(crack_map.lines, crack_map.cracks, strict=True)
        ],
        **crack_map.correction,
        notes=crack_map.notes(),
        preview=shown,
    )


def _mapped(
    state: AppState,
    loaded: LoadedModel,
    upload: Upload,
    pixels: Pixels,
    mm_per_px: float | None,
    prevalence: float | None,
    check: Check,
) -> CrackMap:
    now = datetime.now(UTC)

    def record(tiles: Pixels, outputs: Outputs, _: float) -> None:
        check()
        for tile, probability, features in zip(tiles, outputs["probability"], outputs["features"], strict=True):
            state.recorder.put(
                ScoredImage(now, loaded.version.number, "map", upload.name, tile, None, float(probability), features)
            )

    try:
        crack_map = loaded.mapper.map(pixels, mm_per_px, record, photographed(upload.content), prevalence, check)
    except CracksError as error:  # such as a photo that is too small
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
    for label, count in crack_map.tiles["label"].value_counts().items():
        state.metrics.images.labels(str(label)).inc(count)
    return crack_map
