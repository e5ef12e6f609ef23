"""The out-of-distribution detector of a model, and how many cracks the model missed on which surfaces.

Probabilities are calibrated on validation images, and are reliable only for similar ones. For other images (sky,
plants, a brick wall) they are guesses, and a person should look. The detector separates the two by the Mahalanobis
distance of an image's features from those of validation images. It is a file of a few kB beside the model.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.files import replacing
from pipeline.models.model_files import served_folder
from pipeline.models.projection import project

DETECTOR_FILE = "known_concrete.npz"  # the name in version 0.1.0, under which registered models have it
N_DIMENSIONS = 64
MIN_REFERENCE_IMAGES = 2 * N_DIMENSIONS  # from fewer, the covariance cannot be estimated
RIDGE = 0.01  # of the mean variance, added to each variance; without it the covariance of few images is singular

Values = npt.NDArray[np.floating[Any]]
Projections = npt.NDArray[np.float64]  # (n, N_DIMENSIONS)


@dataclass(frozen=True)
class Surface:
    """A kind of concrete that the model was tested on, and how many cracks it missed there."""

    name: str  # data set, and surface where it has several, such as "sdnet Decks"
    n_cracks: int  # number of cracked test images
    n_missed: int  # how many of these the model classified as intact, at its threshold
    is_external: bool = False  # whether they are of an external test set; False also where that was not recorded


def detector_projection(features: Values) -> Projections:
    """Return the random projection of features, (n, n_features), to the detector's dimensions, (n, 64)."""
    return project(features, N_DIMENSIONS).astype(np.float64)


@dataclass(frozen=True)
class OutOfDistributionDetector:
    """Detects images that are unlike the validation images."""

    mean: Projections  # mean projection of the validation images, (64,)
    precision: Projections  # inverse of the covariance of their projections, (64, 64)
    limit: float | None  # largest in-distribution distance; None if there were too few images to choose it
    surfaces: tuple[Surface, ...]  # the surfaces that the model was tested on

    def distances(self, images: Projections) -> npt.NDArray[np.float64]:
        """Return the Mahalanobis distance of each image from the validation images, (n,)."""
        away = images - self.mean
        return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", away, self.precision, away)))

    def save(self, path: Path) -> None:
        """Write the detector to `path` atomically."""
        arrays: dict[str, Any] = {
            "mean": self.mean.astype(np.float32),
            "precision": self.precision.astype(np.float32),
            "limit": np.float64(np.nan if self.limit is None else self.limit),
            "surfaces": np.array(json.dumps([asdict(surface) for surface in self.surfaces])),
        }
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, file: Path) -> "OutOfDistributionDetector":
        """Read a file that `save` wrote. Raises OSError, ValueError or KeyError if it is not one."""
        with np.load(file) as arrays:
            return cls(
                mean=arrays["mean"].astype(np.float64),
                precision=arrays["precision"].astype(np.float64),
                limit=None if np.isnan(arrays["limit"]) else float(arrays["limit"]),
                surfaces=tuple(Surface(**surface) for surface in json.loads(str(arrays["surfaces"]))),
            )


def load_detector(folder: Path) -> OutOfDistributionDetector | None:
    """Return the detector of the model in `folder`, or None if it has none.

    Raises OSError, ValueError or KeyError if its file is damaged.
    """
    file = served_folder(folder) / DETECTOR_FILE
    return OutOfDistributionDetector.load(file) if file.exists() else None


def fit(
    reference: Projections, held_out: Projections, false_alarm_share: float, surfaces: tuple[Surface, ...]
) -> OutOfDistributionDetector:
    """Return a detector fitted to projections of in-distribution images.

    `reference` gives the mean and the covariance. `held_out`, others, give the limit: this share of them may count as
    out-of-distribution. `surfaces` are those that the model was tested on.
    """
    if len(reference) < MIN_REFERENCE_IMAGES:
        return OutOfDistributionDetector(np.zeros(N_DIMENSIONS), np.eye(N_DIMENSIONS), None, surfaces)
    covariance = np.cov(reference, rowvar=False)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    unlimited = OutOfDistributionDetector(reference.mean(axis=0), np.asarray(np.linalg.inv(covariance)), None, surfaces)
    return replace(unlimited, limit=float(np.quantile(unlimited.distances(held_out), 1 - false_alarm_share)))


def missed_cracks(detector: OutOfDistributionDetector | None) -> list[str]:
    """Return what is known of the cracks that a model with this detector misses, a sentence each, the important first.

    A photo is of a structure that the model has never seen. What it missed on others like that is the best guess; what
    it missed on test images of its own training sources says little, however much the photo looks like them.
    """
    if detector is None:
        return ["It is not recorded how many cracks this model misses."]
    tested = [surface for surface in detector.surfaces if surface.n_cracks]
    own = [surface for surface in tested if not surface.is_external]
    external = [surface for surface in tested if surface.is_external]
    found = f"the model missed {_missed(external)}" if external else "the model was not tested"
    known = "How many cracks are missed on structures like this one is not known; on external structures"
    return [
        f"{known} {found}.",
        *([f"On test images of its own training sources it missed {_missed(own)}."] if own else []),
    ]


def _missed(surfaces: list[Surface]) -> str:
    worst_first = sorted(surfaces, key=lambda surface: surface.n_missed / surface.n_cracks, reverse=True)
    return ", ".join(f"{surface.n_missed:,} of {surface.n_cracks:,} cracks ({surface.name})" for surface in worst_first)
