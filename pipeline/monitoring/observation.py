"""Compute the probability, image statistics and embedding of images, as the prediction log stores them."""

import numpy as np
import pandas as pd

from pipeline.data.images import Images, Pixels, image_statistics
from pipeline.models.classifier import Classifier
from pipeline.models.network import run_in_batches
from pipeline.monitoring.prediction_log import IMAGE_STATISTICS, N_DIMENSIONS, embeddings_of


class _MeasuredImages:
    """Images whose statistics are computed when they are decoded, so that each is decoded once."""

    def __init__(self, images: Images) -> None:
        self.sizes = images.sizes
        self.statistics: list[dict[str, float]] = [{}] * len(images.sizes)
        self._images = images

    def pixels(self, position: int) -> Pixels:
        pixels = self._images.pixels(position)
        self.statistics[position] = image_statistics(pixels)
        return pixels


def observe(classifier: Classifier, images: Images, *, progress: str) -> pd.DataFrame:
    """Return one row per image: probability, brightness, contrast, sharpness, dark_share, bright_share, embedding."""
    n = len(images.sizes)
    probabilities, embeddings = np.empty(n, np.float32), np.empty((n, N_DIMENSIONS), np.float32)
    measured = _MeasuredImages(images)
    for positions, outputs in run_in_batches(classifier.model, measured, progress=progress):
        probabilities[positions] = outputs["probability"]
        embeddings[positions] = embeddings_of(outputs["features"])
    table = pd.DataFrame(measured.statistics, columns=list(IMAGE_STATISTICS), dtype=np.float32)
    return table.assign(probability=probabilities, embedding=list(embeddings))
