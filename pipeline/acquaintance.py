"""Learning what concrete a model knows, from the images that it was calibrated and tested on."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from pipeline.images import LabelledImages, batches_by_size
from pipeline.known_concrete import KnownConcrete, Sketches, Surface, learn, sketches
from pipeline.served import N_THREADS, ServedModel

BATCH_IMAGES = 8
MAX_KNOWN = 1000  # images of validation; with more the mean and the covariance hardly change
MAX_OF_SURFACE = 100  # images by which a surface is recognised
SHARE_STRANGE = 0.002  # of images like the known ones, that may count as strange


def acquaint(model: ServedModel, manifest: pd.DataFrame, tested: pd.DataFrame, datasets: Path) -> KnownConcrete:
    """Return what concrete a model knows.

    Args:
        model: the served form.
        manifest: rows of split, of which those of validation count.
        tested: a row an image of the test and outside sides: dataset, row, label, slice and probability.
        datasets: folder with a folder per data set.
    """
    known = _some(manifest[manifest["split"] == "validation"], MAX_KNOWN)
    images = sketches_of(model, known, datasets)
    is_reference = np.arange(len(known)) % 2 == 0
    surfaces = {}
    for name, rows in tested.groupby(_surface_names(tested)):
        cracks = rows[rows["label"] == "crack"]
        n_missed = int((cracks["probability"] < model.decision.threshold).sum())
        surface = Surface(str(name), len(cracks), n_missed)
        surfaces[surface] = sketches_of(model, _some(rows, MAX_OF_SURFACE), datasets)
    return learn(images[is_reference], images[~is_reference], SHARE_STRANGE, surfaces)


def sketches_of(model: ServedModel, rows: pd.DataFrame, datasets: Path) -> Sketches:
    """Return the sketch of each image, in the order of `rows`: dataset, row, label."""
    images = LabelledImages(rows, datasets)
    positions = batches_by_size(images.sizes, BATCH_IMAGES)

    def sketch(batch: npt.NDArray[np.int64]) -> Sketches:
        return sketches(model.outputs(np.stack([images.pixels(int(position)) for position in batch]))["features"])

    with ThreadPoolExecutor(N_THREADS) as pool:
        parts = list(tqdm(pool.map(sketch, positions), "recognising", len(positions), unit=" batches", disable=None))
    return np.concatenate(parts)[np.argsort(np.concatenate(positions))]


def _some(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return at most `n` rows, drawn evenly by the hash of the image, so that another order gives the same ones."""
    return rows.sort_values("sha256").head(n)


def _surface_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return the data set of each row and, where it has several surfaces, the surface."""
    several = rows.groupby("dataset")["slice"].transform("nunique") > 1
    return rows["dataset"] + (" " + rows["slice"].astype(str)).where(several, "")
