"""The registered model as MLflow loads it: images in, the answers of `cracks predict` out, by the served model.

MLflow keeps a copy of this file with the model ("models from code") and runs it in `mlflow.pyfunc.load_model`,
`mlflow models serve` and `mlflow models predict`. It needs no TensorFlow.
"""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.data.images import Pixels, Sizes, UnreadableImageError, decode, stored_size
from pipeline.data.sources import read_image_file
from pipeline.inference.served import ServedModel, served_outputs

Image = str | bytes | os.PathLike[str] | Pixels


class Predictor:
    """Scores images. It is no PythonModel: MLflow checks the type hint of its `predict`, and no array would pass."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the served model."""
        self._model = ServedModel.load(Path(context.artifacts["served"]))

    def predict(self, context: PythonModelContext, model_input: list[Any]) -> pd.DataFrame:
        """Return a row for each image.

        Args:
            context: not used.
            model_input: for each image the path of its file, its file as bytes or in base64, or its pixels: uint8 RGB,
                (height, width, 3); an array (n, height, width, 3) is n images. Also a table with one column of these.

        Returns:
            Columns `probability` (float32, 0..1), `label` (crack, intact or review) and `in_distribution` (whether the
            image is similar to the validation images; None if the model cannot tell).

        Raises:
            MlflowException: an image cannot be read; the message has its position, from 0, and the reason.
        """
        given: Any = model_input  # whose type hint makes the signature
        if isinstance(given, pd.DataFrame):
            given = given.iloc[:, 0]
        try:
            images = GivenImages(list(given))
            parts = [
                pd.DataFrame(self._model.labels(outputs)._asdict(), index=positions)
                for positions, outputs in served_outputs(self._model, images, progress="scoring")
            ]
        except UnreadableImageError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        table = pd.concat(parts).sort_index() if parts else pd.DataFrame()
        return table.reindex(columns=["probability", "label", "in_distribution"])


class GivenImages:
    """The images of a call, each decoded when it is scored. An UnreadableImageError names the position of the image."""

    def __init__(self, given: list[Image]) -> None:
        self._contents: list[bytes | Pixels] = []
        sizes = []
        for position, image in enumerate(given):
            with _named(position):
                content = _content_of(image)
                sizes.append(stored_size(content) if isinstance(content, bytes) else content.shape[:2])
            self._contents.append(content)
        self.sizes: Sizes = np.array(sizes, np.int64).reshape(-1, 2)

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, shape (height, width, 3)."""
        content = self._contents[position]
        with _named(position):
            return decode(content) if isinstance(content, bytes) else content


@contextmanager
def _named(position: int) -> Iterator[None]:
    try:
        yield
    except UnreadableImageError as error:
        raise UnreadableImageError(f"image {position}: {error}") from None


def _content_of(image: Image) -> bytes | Pixels:
    """Return the file of an image, or its pixels."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and (decoded := _from_base64(image)) is not None:
        return decoded
    if isinstance(image, str | os.PathLike):
        content = read_image_file(Path(image))
        if isinstance(content, str):
            raise UnreadableImageError(f"neither an image in base64 nor the path of a file that can be read: {content}")
        return content
    pixels = np.asarray(image)  # of JSON: lists of numbers
    is_rgb = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0 and pixels.dtype.kind in "iu"
    if not is_rgb or pixels.min() < 0 or pixels.max() > 255:
        raise UnreadableImageError(
            f"pixels must be RGB, whole numbers 0..255, (height, width, 3); received {pixels.dtype}, {pixels.shape}"
        )
    return pixels.astype(np.uint8, copy=False)


def _from_base64(text: str) -> bytes | None:
    """Return the image file that `text` is in base64, None if it is none; the name of a file can be valid base64."""
    try:
        content = base64.b64decode(text.replace("\n", ""), validate=True)
        stored_size(content)
    except (ValueError, UnreadableImageError):
        return None
    return content


class CrackModel(Predictor, PythonModel):  # type: ignore[misc]  # MLflow has no types
    """The model that MLflow loads."""


mlflow.models.set_model(CrackModel())
