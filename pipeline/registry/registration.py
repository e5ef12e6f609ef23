"""Register a model: write its served files, log it to its run, and create a version."""

import base64
import logging
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import pipeline
from pipeline.crack_lines.tracer import load_tracer, tracer_identity
from pipeline.data.images import LabelledImages, Pixels, encode_png
from pipeline.data.training_images import TRAINING_IMAGES_FILE, training_images
from pipeline.errors import RefusedError
from pipeline.inference.ood_fitting import fit_detector
from pipeline.inference.out_of_distribution import DETECTOR_FILE
from pipeline.inference.served import GOLDEN_FILE, MAX_GOLDEN_DIFFERENCE, ServedModel
from pipeline.models.model_files import MODEL_FILE, TRACER_FILE, TRACER_FOLDER
from pipeline.registry.mlflow_runs import Results
from pipeline.registry.versions import TRACER_TAG, files_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.models.classifier import Classifier

log = logging.getLogger(__name__)

HASH_TAG = "cracks.model_hash"
PINNED = (
    "croniter",
    "numpy",
    "openvino",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
    "tqdm",
)  # what `crack_model` imports
N_GOLDEN = 8  # validation images, half of them cracked
GOLDEN_SIZE_PX = 256  # larger images are cropped to the centre


def register(
    client: "MlflowClient", folder: Path, results: Results, run_id: str, name: str, tags: dict[str, str]
) -> "ModelVersion":
    """Return the registered version, under `name`, of the model that `train` wrote to `folder`; create it if it is new.

    Raises CracksError or RefusedError as `write_served_files`.
    """
    import mlflow

    from pipeline.models.classifier import Classifier

    classifier = Classifier.load(folder)
    hashes = {HASH_TAG: classifier.content_hash(), TRACER_TAG: tracer_identity(results.tracer / TRACER_FILE.name)}
    registered = version_with(client, name, hashes)
    if registered is not None:
        log.info("The same model is registered already, as version %s", registered.version)
        return registered
    with tempfile.TemporaryDirectory() as scratch:
        served = Path(scratch) / "served"
        served.mkdir()
        write_served_files(classifier, results, served)
        uri = log_model(folder / MODEL_FILE, served, run_id, name)
    # Version and tags are created in one call, so a crash cannot leave a version without its hashes.
    return mlflow.register_model(uri, name, tags=hashes | tags)


def version_with(client: "MlflowClient", name: str, tags: dict[str, str]) -> "ModelVersion | None":
    """Return the newest registered version with these tags, None if there is none or its files are gone."""
    found = client.search_model_versions(
        " and ".join([f"name = '{name}'", *(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())])
    )
    newest = max(found, key=lambda version: int(version.version), default=None)
    return newest if newest is not None and files_of(name, newest.version) else None


def write_served_files(classifier: "Classifier", results: Results, out: Path) -> None:
    """Write the files that are registered with the Keras model into the empty folder `out`.

    Raises CracksError if the tracer cannot be loaded, RefusedError if the served model predicts differently.
    """
    shutil.copytree(results.tracer, out / TRACER_FOLDER)
    load_tracer(out)
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
    """Write the served model to `out`. Raises RefusedError if it and the Keras model predict differently."""
    from pipeline.inference.conversion import write_served

    write_served(classifier, golden, out)
    difference = ServedModel.load(out).golden_difference()
    if difference > MAX_GOLDEN_DIFFERENCE:
        raise RefusedError(
            f"The served form of the model differs from the Keras model by {difference:.2g} in a probability, "
            f"{MAX_GOLDEN_DIFFERENCE:g} is allowed. It is not registered. Register it on another machine."
        )


def log_model(keras_file: Path, served: Path, run_id: str, name: str) -> str:
    """Log a Keras model to a run, with all that it needs to be loaded without this project; return its URI.

    `served` is the folder of the served model and of what is registered beside it; `name` is that of the model.
    """
    import mlflow

    from pipeline.registry import crack_model  # MLflow runs this file when it loads the model

    with np.load(served / GOLDEN_FILE) as arrays:
        example = base64.b64encode(encode_png(arrays["image_0"])).decode()
    # MLflow warns that it will not check what the model is given; `crack_model.Predictor` says why.
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings(record=True):
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=crack_model.__file__,
            artifacts={"served": str(served), "keras": str(keras_file)},
            code_paths=[str(Path(pipeline.__file__).parent)],
            input_example=[example],
            pip_requirements=[f"{package}=={version(package)}" for package in PINNED],
        )
    return str(logged.model_uri)
