"""Fit the out-of-distribution detector of a model to the images that it was calibrated and tested on."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.inference.out_of_distribution import (
    N_DIMENSIONS,
    OutOfDistributionDetector,
    Projections,
    Surface,
    detector_projection,
    fit,
)
from pipeline.inference.served import ServedModel, served_outputs

MAX_VALIDATION_IMAGES = 1000  # with more, the mean and the covariance hardly change
FALSE_ALARM_SHARE = 0.002  # of in-distribution images that may count as out-of-distribution


def fit_detector(
    model: ServedModel, manifest: pd.DataFrame, tested: pd.DataFrame, datasets: Path
) -> OutOfDistributionDetector:
    """Return the detector of a served model.

    Half of the validation images of the manifest give the mean and the covariance, the others the limit. `tested` has a
    row per test or external image: dataset, label, slice, split and probability.
    """
    validation = manifest[manifest["split"] == "validation"]
    # with the smallest hashes of the images: a random sample that does not depend on the order of rows
    validation = validation.sort_values("sha256").head(MAX_VALIDATION_IMAGES)
    images = projections_of(model, validation, datasets)
    is_reference = np.arange(len(validation)) % 2 == 0
    surfaces = []
    for name, rows in tested.groupby(_surface_names(tested)):
        cracks = rows[rows["label"] == "crack"]
        n_missed = int((cracks["probability"] < model.decision.threshold).sum())
        surfaces.append(Surface(str(name), len(cracks), n_missed, bool((rows["split"] == "external").all())))
    return fit(images[is_reference], images[~is_reference], FALSE_ALARM_SHARE, tuple(surfaces))


def projections_of(model: ServedModel, rows: pd.DataFrame, datasets: Path) -> Projections:
    """Return the projection of each image, (n, 64), in the order of `rows` (columns dataset, row and label)."""
    projections = np.empty((len(rows), N_DIMENSIONS))
    for positions, outputs in served_outputs(model, LabelledImages(rows, datasets), progress="computing features"):
        projections[positions] = detector_projection(outputs["features"])
    return projections


def _surface_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return the name of each row's surface: its data set and, if that has several surfaces, the surface."""
    several = rows.groupby("dataset")["slice"].transform("nunique") > 1
    return rows["dataset"] + (" " + rows["slice"].astype(str)).where(several, "")
