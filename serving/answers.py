"""Bodies of the answers, as in the OpenAPI description."""

from datetime import datetime

from pydantic import BaseModel, Field

from pipeline.models.decision import Verdict
from pipeline.params import Serve
from serving.current_model import LoadedModel
from serving.wanted_version import Version


class ModelAnswer(BaseModel):
    """The model that answers."""

    name: str
    version: str
    description: str = Field(description="name, version and state for display")
    trained_on: str
    is_demo: bool = Field(description="trained on drawn images: its answers mean nothing for real concrete")
    is_production: bool
    since: datetime = Field(description="when this server started to use it")
    threshold: float = Field(description="an image with at least this probability is called a crack")
    review_from: float = Field(description="from here to below review_to the label is `review`")
    review_to: float
    image_size_px: int = Field(description="side to which the network resizes an image")
    refused: str | None = Field(description="version to be served that was refused because it is broken")
    max_body_mb: int = Field(description="of a request")
    max_files: int = Field(description="of a request")


class OcclusionOverlay(BaseModel):
    """Evidence for a crack in each cell of a grid: the change of the logit when the cell is hidden."""

    logits: list[list[float]] = Field(description="rows of cells; positive where hiding makes a crack less likely")
    image: str = Field(description="data URL of a PNG: the image under an overlay, red for a crack, blue against one")


class Prediction(BaseModel):
    """Probability and label of one image."""

    file: str
    probability: float = Field(ge=0, le=1)
    label: Verdict
    overlay: OcclusionOverlay | None = None


class PredictAnswer(BaseModel):
    """Predictions of one model for all files of a request, in their order."""

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
        description="whether the tile is similar to the images that the model was validated on; null: not recorded"
    )


class MapAnswer(BaseModel):
    """Crack map of one photo."""

    file: str
    width: int
    height: int
    model_version: str
    cracked_share: float = Field(ge=0, le=1, description="share of the area under tiles labelled `crack`")
    tiles: list[Tile]
    notes: list[str] = Field(description="caveats to show with the map")
    preview: str | None = Field(description="data URL of a JPEG of the photo, made smaller")


def model_answer(loaded: LoadedModel, refused: Version | None, settings: Serve) -> ModelAnswer:
    """Return the description of the model, with the limits of a request."""
    version, decision = loaded.version, loaded.model.decision
    return ModelAnswer(
        name=version.name,
        version=version.number,
        description=str(version),
        trained_on=version.trained_on,
        is_demo=version.is_demo,
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
