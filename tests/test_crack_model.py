"""The registered model as users of MLflow load it."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.crack_maps.batch_prediction import score
from pipeline.data.images import decode, encode_png
from pipeline.inference.out_of_distribution import DETECTOR_FILE, OutOfDistributionDetector, detector_projection
from pipeline.inference.served import ServedModel
from pipeline.registry.registration import log_model

# MLflow says so of its own types when `mlflow.pyfunc` is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

IMAGES = [np.full((8, 8, 3), level, np.uint8) for level in (0, 90, 255)]  # crack, review, intact; the last is odd
FILES = [encode_png(image) for image in IMAGES]


@pytest.fixture(scope="module")
def served(dark_is_crack, tmp_path_factory):
    """The folder of a served model whose detector knows dark images and grey ones."""
    served = tmp_path_factory.mktemp("known") / "served"
    shutil.copytree(dark_is_crack, served, ignore=shutil.ignore_patterns("*.keras"))
    seen = detector_projection(ServedModel.load(served).outputs(np.stack(IMAGES))["features"])
    limit = float(np.sqrt(((seen[0] - seen[1]) ** 2).sum()))
    OutOfDistributionDetector(seen[0], np.eye(64), limit, ()).save(served / DETECTOR_FILE)
    return served


@pytest.fixture(scope="module")
def store(dark_is_crack, served, empty_store, tmp_path_factory):
    """The address of a store with that model in production."""
    root = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, root / "mlflow.db")
    uri = f"sqlite:///{root}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setenv("MLFLOW_REGISTRY_URI", uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient()
        experiment_id = client.create_experiment("any", artifact_location=(root / "artifacts").as_uri())
        run_id = client.create_run(experiment_id).info.run_id
        found = mlflow.register_model(log_model(dark_is_crack / "model.keras", served, run_id, "cracks"), "cracks")
        client.set_registered_model_alias("cracks", "production", found.version)
        yield uri


@pytest.fixture(scope="module")
def model(store):
    return mlflow.pyfunc.load_model("models:/cracks@production")


def written(folder):
    paths = [folder / f"{number}.png" for number in range(len(FILES))]
    for path, content in zip(paths, FILES, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("as_what", ["paths", "strings", "bytes", "base64", "lines", "array", "numbers", "table"])
def test_it_answers_as_cracks_predict_does_whatever_form_the_images_have(model, served, tmp_path, as_what):
    given = {
        "paths": written(tmp_path),
        "strings": [str(path) for path in written(tmp_path)],
        "bytes": FILES,
        "base64": [base64.b64encode(content).decode() for content in FILES],
        "lines": [base64.encodebytes(content).decode() for content in FILES],
        "array": np.stack(IMAGES),
        "numbers": np.stack(IMAGES).tolist(),
        "table": pd.DataFrame({"image": [str(path) for path in written(tmp_path)]}),
    }[as_what]
    expected = score(ServedModel.load(served), FILES)
    answers = model.predict(given)
    assert list(answers) == ["probability", "label", "in_distribution"]
    assert answers["probability"].tolist() == expected["probability"].tolist()
    assert answers["label"].tolist() == expected["label"].tolist() == ["crack", "review", "review"]
    assert answers["in_distribution"].tolist() == [True, True, False]
    assert expected["reason"].tolist() == ["", "unsure", "unlike the training images"]


def test_images_of_several_sizes_are_answered_in_their_order(model):
    levels = [0, 255, 90, 0]
    sizes = [(40, 30), (8, 8), (40, 30), (8, 9)]
    images = [np.full((*size, 3), level, np.uint8) for size, level in zip(sizes, levels, strict=True)]
    assert model.predict(images)["label"].tolist() == ["crack", "review", "review", "crack"]
    assert len(model.predict([])) == 0


def test_base64_goes_through_the_same_decoder(model):
    """Upright by its EXIF data, 16 bits to 8, and to RGB."""
    from pipeline.registry.crack_model import GivenImages

    halves = np.zeros((20, 40), np.uint16)
    halves[:, 20:] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(halves).save(buffer, "PNG", exif=exif)
    (pixels,) = [GivenImages([base64.b64encode(buffer.getvalue()).decode()]).pixels(0)]
    assert pixels.shape == (40, 20, 3)
    assert (pixels[0, 0].tolist(), pixels[-1, 0].tolist()) == ([0, 0, 0], [255, 255, 255])
    np.testing.assert_array_equal(pixels, decode(buffer.getvalue()))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"no image", "not an image"),
        (encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[:5000], "truncated"),
        ("missing.jpg", "neither an image in base64 nor the path of a file that can be read: No such file"),
        (base64.b64encode(b"no image").decode(), "neither an image in base64 nor the path"),
        ([[[300, 0, 0]]], "whole numbers 0..255"),
        ([[[-1, 0, 0]]], "whole numbers 0..255"),
        ([[[0.5, 0, 0]]], "received float64"),
        (np.zeros((8, 8), np.uint8), r"received uint8, \(8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"received uint8, \(0, 8, 3\)"),
    ],
    ids=["bytes", "cut", "path", "base64", "over", "under", "shares", "grey", "empty"],
)
def test_what_cannot_be_read_is_named_with_its_position(model, wrong, reason):
    with pytest.raises(MlflowException, match=f"image 1: .*({reason})") as raised:
        model.predict([IMAGES[0], wrong])
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_model_that_cannot_tell_what_it_knows_says_none(dark_is_crack):
    from pipeline.registry.crack_model import CrackModel

    without = CrackModel()
    without.load_context(mlflow.pyfunc.PythonModelContext({"served": str(dark_is_crack)}, None))
    assert without.predict(None, IMAGES)["in_distribution"].tolist() == [None] * 3


def test_it_needs_neither_this_project_nor_tensorflow(store, tmp_path):
    code = f"""
import json, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [path for path in sys.path if path not in ("", {str(ROOT)!r})]
sys.modules |= dict.fromkeys(("tensorflow", "keras", "sklearn", "great_expectations", "prefect"))
import mlflow
answers = mlflow.pyfunc.load_model("models:/cracks@production").predict(sys.argv[1:])
import pipeline
print(json.dumps([pipeline.__file__, answers["label"].tolist()]))
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-c", code, *map(str, written(tmp_path))]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    code_of_pipeline, labels = json.loads(ran.stdout)
    assert not Path(code_of_pipeline).is_relative_to(ROOT)
    assert labels == ["crack", "review", "review"]
