"""Fitting the out-of-distribution detector of a model, on the images that it was calibrated and tested on."""

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

MAX_VALIDATION_IMAGES = 1000  # images of validation; with more the mean and the covariance hardly change
MAX_SURFACE_IMAGES = 100  # images by which a surface is recognised
FALSE_ALARM_SHARE = 0.002  # of images like the known ones, that may count as strange


def fit_detector(
    model: ServedModel, manifest: pd.DataFrame, tested: pd.DataFrame, datasets: Path
) -> OutOfDistributionDetector:
    """Return the detector of a model.

    Args:
        model: the served form.
        manifest: rows of split, of which those of validation count.
        tested: a row an image of the test and external sides: dataset, row, label, slice and probability.
        datasets: folder with a folder per data set.
    """
    known = _some(manifest[manifest["split"] == "validation"], MAX_VALIDATION_IMAGES)
    images = projections_of(model, known, datasets)
    is_reference = np.arange(len(known)) % 2 == 0
    surfaces = {}
    for name, rows in tested.groupby(_surface_names(tested)):
        cracks = rows[rows["label"] == "crack"]
        n_missed = int((cracks["probability"] < model.decision.threshold).sum())
        surface = Surface(str(name), len(cracks), n_missed)
        surfaces[surface] = projections_of(model, _some(rows, MAX_SURFACE_IMAGES), datasets)
    return fit(images[is_reference], images[~is_reference], FALSE_ALARM_SHARE, surfaces)


def projections_of(model: ServedModel, rows: pd.DataFrame, datasets: Path) -> Projections:
    """Return the projection of each image, in the order of `rows`: dataset, row, label."""
    found = np.empty((len(rows), N_DIMENSIONS))
    for positions, outputs in served_outputs(model, LabelledImages(rows, datasets), progress="recognising"):
        found[positions] = detector_projection(outputs["features"])
    return found


def _some(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return at most `n` rows, drawn evenly by the hash of the image, so that another order gives the same ones."""
    return rows.sort_values("sha256").head(n)


def _surface_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return the data set of each row and, where it has several surfaces, the surface."""
    several = rows.groupby("dataset")["slice"].transform("nunique") > 1
    return rows["dataset"] + (" " + rows["slice"].astype(str)).where(several, "")
