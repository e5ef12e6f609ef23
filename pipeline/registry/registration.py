"""Register a model: write its extra files, log it to its run, and create a version."""

import logging
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.data.images import LabelledImages, Pixels
from pipeline.data.training_images import TRAINING_IMAGES_FILE, training_images
from pipeline.errors import RefusedError
from pipeline.inference.ood_fitting import fit_detector
from pipeline.inference.out_of_distribution import DETECTOR_FILE
from pipeline.inference.served import MAX_GOLDEN_DIFFERENCE, ServedModel
from pipeline.registry.mlflow_runs import Results

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.models.classifier import Classifier

log = logging.getLogger(__name__)

HASH_TAG = "cracks.model_hash"
EXAMPLE_SIZE_PX = 32  # of the input example: MLflow stores it as JSON, and the graph takes any size
PINNED = ("tensorflow-cpu", "keras", "numpy", "pillow")
N_GOLDEN = 8  # validation images, half of them cracked
GOLDEN_SIZE_PX = 256  # larger images are cropped to the centre


def register(
    client: "MlflowClient", classifier: "Classifier", results: Results, run_id: str, name: str, tags: dict[str, str]
) -> "ModelVersion":
    """Return the registered version of this model under `name`; create it if it is new.

    Raises:
        RefusedError: the served model and the Keras model predict differently.
    """
    import mlflow

    content_hash = classifier.content_hash()
    registered = version_with_hash(client, name, content_hash)
    if registered is not None:
        log.info("The same model is registered already, as version %s", registered.version)
        return registered
    with tempfile.TemporaryDirectory() as scratch:
        write_extra_files(classifier, results, Path(scratch))
        uri = log_model(classifier, Path(scratch), run_id, name)
    # Version and tags are created in one call, so a crash cannot leave a version without its hash.
    return mlflow.register_model(uri, name, tags={HASH_TAG: content_hash, **tags})


def version_with_hash(client: "MlflowClient", name: str, content_hash: str) -> "ModelVersion | None":
    """Return the registered version with this content hash, None if there is none."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{HASH_TAG}` = '{content_hash}'")
    return max(found, key=lambda version: int(version.version), default=None)


def write_extra_files(classifier: "Classifier", results: Results, out: Path) -> None:
    """Write the files that are registered with the Keras model into the empty folder `out`.

    Raises:
        RefusedError: the served model and the Keras model predict differently.
    """
    manifest = pd.read_parquet(results.manifest)
    write_checked_served(classifier, golden_images(manifest, results.datasets), out)
    shutil.copy(results.reference, out)
    training_images(manifest).to_parquet(out / TRAINING_IMAGES_FILE, index=False)
    known = fit_detector(ServedModel.load(out), manifest, pd.read_parquet(results.predictions), results.datasets)
    known.save(out / DETECTOR_FILE)


def golden_images(manifest: pd.DataFrame, datasets: Path) -> list[Pixels]:
    """Return a few validation images, uint8 (height, width, 3); the same manifest gives the same images."""
    chosen = manifest[manifest["split"] == "validation"].sort_values("sha256").groupby("label").head(N_GOLDEN // 2)
    images = LabelledImages(chosen[["dataset", "row", "label", "group"]], datasets)
    return [_middle(images.pixels(position)) for position in range(len(images))]


def _middle(pixels: Pixels) -> Pixels:
    top, left = (max(0, (side - GOLDEN_SIZE_PX) // 2) for side in pixels.shape[:2])
    return pixels[top : top + GOLDEN_SIZE_PX, left : left + GOLDEN_SIZE_PX]


def write_checked_served(classifier: "Classifier", golden: list[Pixels], out: Path) -> None:
    """Write the served model to `out` and check it against the Keras model.

    Raises:
        RefusedError: the served model and the Keras model predict differently.
    """
    from pipeline.inference.conversion import write_served

    write_served(classifier, golden, out)
    difference = ServedModel.load(out).golden_difference()
    if difference > MAX_GOLDEN_DIFFERENCE:
        raise RefusedError(
            f"The served form of the model differs from the Keras model by {difference:.2g} in a probability, "
            f"{MAX_GOLDEN_DIFFERENCE:g} is allowed. It is not registered. Register it on another machine."
        )


def log_model(classifier: "Classifier", beside: Path, run_id: str, name: str) -> str:
    """Log a model with signature, example, pinned requirements and the files in `beside` to a run; return its URI."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from pipeline.models.tf import keras

    n_features = classifier.model.output["features"].shape[-1]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(np.float32), (-1,), "probability"),
                TensorSpec(np.dtype(np.float32), (-1, n_features), "features"),
            ]
        ),
    )
    example = np.full((1, EXAMPLE_SIZE_PX, EXAMPLE_SIZE_PX, 3), 128, np.uint8)
    keras.config.disable_interactive_logging()  # MLflow runs the example: no progress bar for one image
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.tensorflow.log_model(
            classifier.model,
            name=name,
            signature=signature,
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in PINNED],
            extra_files=[str(path) for path in sorted(beside.iterdir())],
        )
    return str(logged.model_uri)
