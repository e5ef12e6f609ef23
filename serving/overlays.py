"""Pictures in answers: occlusion overlays, and photos made smaller."""

import base64
import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, Field

from pipeline.data.images import Pixels
from pipeline.evaluation.examples import occlusion_overlay
from pipeline.evaluation.occlusion import occlusion_map
from pipeline.inference.served import ServedModel

MAX_EXPLAINED_PX = 512  # of the longer side: more detail is not needed, and occlusion scores the image 50 times


class OcclusionOverlay(BaseModel):
    """Evidence for a crack in each cell of a grid: the change of the logit when the cell is hidden."""

    logits: list[list[float]] = Field(description="rows of cells; positive where hiding makes a crack less likely")
    image: str = Field(description="data URL of a PNG: the image under an overlay, red for a crack, blue against one")


def explained(model: ServedModel, pixels: Pixels, batch_size: int) -> OcclusionOverlay:
    """Return the overlay of an image, uint8 (height, width, 3), scored in batches between which others are scored."""

    def score(hidden: Pixels) -> npt.NDArray[np.float32]:
        parts = [hidden[start : start + batch_size] for start in range(0, len(hidden), batch_size)]
        return np.concatenate([model.outputs(part)["probability"] for part in parts])

    small: Pixels = np.asarray(shrunk(pixels, MAX_EXPLAINED_PX))
    overlay = occlusion_map(score, small)
    return OcclusionOverlay(
        logits=overlay.tolist(), image=data_url(Image.fromarray(occlusion_overlay(small, overlay)), "PNG")
    )


def data_url(picture: Image.Image, file_format: Literal["JPEG", "PNG"]) -> str:
    """Return a picture as a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shrunk(pixels: Pixels, max_side_px: int) -> Image.Image:
    """Return a picture whose longer side has at most `max_side_px`."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((max_side_px, max_side_px))
    return picture
