"""The bodies of the answers, as OpenAPI describes them."""

from datetime import datetime

from pydantic import BaseModel, Field

from pipeline.models.decision import Verdict
from pipeline.params import Serve
from serving.holder import Held
from serving.wanted_version import Version


class ModelAnswer(BaseModel):
    """The model that answers."""

    name: str
    version: str
    description: str = Field(description="which one it is, in words")
    trained_on: str
    is_demo: bool = Field(description="trained on drawn images: its answers say nothing about concrete")
    is_production: bool
    since: datetime = Field(description="when this server began to use it")
    threshold: float = Field(description="from here on an image counts as crack")
    review_from: float = Field(description="from here on, and below review_to, a person should look")
    review_to: float
    image_size_px: int = Field(description="size at which the network sees an image")
    refused: str | None = Field(description="version that the registry wants and that was refused as broken")
    max_body_mb: int = Field(description="of a request")
    max_files: int = Field(description="of a request")


class Heat(BaseModel):
    """How much each cell of a grid speaks for a crack: the change of the logit when it is hidden."""

    logits: list[list[float]] = Field(description="row by row; positive where hiding makes a crack less likely")
    image: str = Field(description="data URL of a PNG: the picture under the map, red for a crack, blue against")


class Prediction(BaseModel):
    """What the model says about one image."""

    file: str
    probability: float = Field(ge=0, le=1)
    label: Verdict
    overlay: Heat | None = None


class PredictAnswer(BaseModel):
    """What one model says about all files of a request, in their order."""

    model_version: str
    predictions: list[Prediction]


class Tile(BaseModel):
    """A square of the photo, in pixels of the upright photo."""

    row: int
    col: int
    x: int
    y: int
    size: int
    probability: float = Field(ge=0, le=1)
    label: Verdict
    in_distribution: bool | None = Field(
        description="whether it looks like concrete that the model knows; null: not recorded"
    )


class MapAnswer(BaseModel):
    """Where the cracks of one photo are."""

    file: str
    width: int
    height: int
    model_version: str
    cracked_share: float = Field(ge=0, le=1, description="of the area, under tiles that read as crack")
    tiles: list[Tile]
    notes: list[str] = Field(description="what a reader must know, in words")
    preview: str | None = Field(description="data URL of a JPEG of the photo, made smaller")


def model_answer(held: Held, refused: Version | None, settings: Serve) -> ModelAnswer:
    """Return what is said about the model, and what a request may hold."""
    version, decision = held.version, held.model.decision
    return ModelAnswer(
        name=version.name,
        version=version.number,
        description=str(version),
        trained_on=version.trained_on,
        is_demo=version.is_demo,
        is_production=version.is_production,
        since=held.since,
        threshold=decision.threshold,
        review_from=decision.review_from,
        review_to=decision.review_to,
        image_size_px=held.model.image_size_px,
        refused=None if refused is None else refused.number,
        max_body_mb=settings.max_body_mb,
        max_files=settings.max_files,
    )
