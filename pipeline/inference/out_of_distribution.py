"""The out-of-distribution detector of a model, and how many cracks the model missed on which surface.

A probability means something on images like those of validation, on which it was calibrated. Elsewhere (sky, plants,
a wall of bricks) it is a guess, and a person should look. The detector tells the two apart by the Mahalanobis distance
of an image's features from those of validation images; it is a file of a few kB beside the model.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.files import replacing
from pipeline.models.model_files import extra_files
from pipeline.models.projection import project

DETECTOR_FILE = "known_concrete.npz"  # as version 0.1.0 called it: registered models have it under this name
N_DIMENSIONS = 64
MIN_REFERENCE_IMAGES = 2 * N_DIMENSIONS  # images; of fewer, a covariance says nothing
RIDGE = 0.01  # of the mean variance, added to each: with few images the covariance is singular without

Values = npt.NDArray[np.floating[Any]]
Projections = npt.NDArray[np.float64]  # (n, N_DIMENSIONS)


@dataclass(frozen=True)
class Surface:
    """A kind of concrete that the model was tested on, and how it fared.

    Attributes:
        name: data set, and surface where it has several, such as "sdnet Decks".
        n_cracks: cracked images of it.
        n_missed: of these, how many the model called intact at its threshold.
    """

    name: str
    n_cracks: int
    n_missed: int


def detector_projection(features: Values) -> Projections:
    """Return features, (n, n_features), as 64 numbers each, between which distances are nearly kept, (n, 64)."""
    return project(features, N_DIMENSIONS).astype(np.float64)


@dataclass(frozen=True)
class OutOfDistributionDetector:
    """Tells images like those of validation from others.

    Attributes:
        mean: of the projections of validation images, (64,).
        precision: inverse of their covariance, (64, 64).
        limit: the largest distance that counts as in distribution, None where there were too few images to tell.
        surfaces: what the model was tested on.
        centres: mean projection of each surface, (n_surfaces, 64).
    """

    mean: Projections
    precision: Projections
    limit: float | None
    surfaces: tuple[Surface, ...]
    centres: Projections

    def distances(self, images: Projections) -> npt.NDArray[np.float64]:
        """Return how far each image is from the known ones, (n,) (Mahalanobis 1936)."""
        away = images - self.mean
        return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", away, self.precision, away)))

    def is_in_distribution(self, images: Projections) -> npt.NDArray[np.bool_] | None:
        """Return whether each image is like known ones, (n,), None where it cannot tell."""
        return None if self.limit is None else self.distances(images) <= self.limit

    def nearest_surface(self, images: Projections) -> Surface | None:
        """Return the tested surface that most of these images look like, None where none was tested."""
        if not self.surfaces:
            return None
        away = images[:, None] - self.centres[None]  # (n, n_surfaces, 64)
        nearest = np.einsum("nij,jk,nik->ni", away, self.precision, away).argmin(axis=1)
        return self.surfaces[int(np.bincount(nearest, minlength=len(self.surfaces)).argmax())]

    def save(self, path: Path) -> None:
        """Write the file `path`, whole or not at all."""
        arrays: dict[str, Any] = {
            "mean": self.mean.astype(np.float32),
            "precision": self.precision.astype(np.float32),
            "limit": np.float64(np.nan if self.limit is None else self.limit),
            "centres": self.centres.astype(np.float32),
            "surfaces": np.array(json.dumps([asdict(surface) for surface in self.surfaces])),
        }
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, file: Path) -> "OutOfDistributionDetector":
        """Read a file that `save` wrote. Raises OSError, ValueError or KeyError where it is none."""
        with np.load(file) as arrays:
            return cls(
                mean=arrays["mean"].astype(np.float64),
                precision=arrays["precision"].astype(np.float64),
                limit=None if np.isnan(arrays["limit"]) else float(arrays["limit"]),
                surfaces=tuple(Surface(**surface) for surface in json.loads(str(arrays["surfaces"]))),
                centres=arrays["centres"].astype(np.float64),
            )


def load_detector(folder: Path) -> OutOfDistributionDetector | None:
    """Return the detector of the model in `folder`, None where it has none.

    Raises:
        OSError, ValueError or KeyError: its file is broken.
    """
    file = extra_files(folder) / DETECTOR_FILE
    return OutOfDistributionDetector.load(file) if file.exists() else None


def fit(
    reference: Projections, held_out: Projections, false_alarm_share: float, tested: dict[Surface, Projections]
) -> OutOfDistributionDetector:
    """Return the detector of a model.

    Args:
        reference: of known images.
        held_out: of others like them, by which the limit is chosen.
        false_alarm_share: of these, the share that may count as strange.
        tested: by surface, of some of its images.
    """
    centres = np.array([images.mean(axis=0) for images in tested.values()]).reshape(-1, N_DIMENSIONS)
    if len(reference) < MIN_REFERENCE_IMAGES:
        return OutOfDistributionDetector(np.zeros(N_DIMENSIONS), np.eye(N_DIMENSIONS), None, tuple(tested), centres)
    covariance = np.cov(reference, rowvar=False)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    known = OutOfDistributionDetector(
        reference.mean(axis=0), np.asarray(np.linalg.inv(covariance)), None, tuple(tested), centres
    )
    return replace(known, limit=float(np.quantile(known.distances(held_out), 1 - false_alarm_share)))
