import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.calibration import Calibration, Platt
from pipeline.classifier import Classifier
from pipeline.decision import Decision
from pipeline.errors import CracksError, UnavailableError
from pipeline.export import calibrated
from pipeline.network import build_classifier
from pipeline.predict import load_model, predict
from pipeline.starter import load_starter
from pipeline.tf import keras

DECISION = Decision(threshold=0.5, review_from=0.2, review_to=0.8)


@pytest.fixture(scope="module")
def classifier():
    """A model that takes dark for cracked: probability 0.5 at the mean of ImageNet, less the lighter it is."""
    network = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    head = keras.layers.Dense(1, name="head")
    graph = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), -1.0), np.zeros(1)])
    return Classifier(calibrated(graph, Calibration(Platt(1.0, 0.0))), DECISION)


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    classifier.model.save(folder / "model.keras")
    (folder / "decision.json").write_text(json.dumps(DECISION.as_dict()))
    return folder


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database of MLflow without an experiment; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    database = tmp_path_factory.getbasetemp() / "empty-mlflow.db"
    if not database.exists():
        MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def registry(tmp_path, monkeypatch, empty_store, folder):
    """A registry with two versions of "cracks", of which version 1 is challenger and version 2 trained on a demo."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets itself; as good as unset
    for name, value in tracking.SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow" / "mlflow.db")
    client, _ = tracking.connect()
    client.create_registered_model("cracks")
    for demo in ("false", "true"):
        client.create_model_version("cracks", str(folder), tags={"demo": demo})
    client.set_registered_model_alias("cracks", "challenger", "1")
    return SimpleNamespace(root=tmp_path, client=client)


def save_grey(path, level, size=(8, 8)):
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def test_each_image_has_its_path_probability_and_label(tmp_path, classifier):
    levels = {"dark.png": 0, "middle.png": 115, "light.png": 255}
    paths = [save_grey(tmp_path / name, level) for name, level in levels.items()]
    scored = predict(classifier, paths)
    assert list(scored.table) == ["path", "probability", "label"]
    assert scored.table["path"].tolist() == [str(path) for path in paths]
    assert scored.table["label"].tolist() == ["crack", "review", "intact"]
    assert scored.table["probability"].tolist() == sorted(scored.table["probability"], reverse=True)
    assert scored.unreadable == {}


def test_images_of_mixed_sizes_keep_their_order(tmp_path, classifier):
    sizes = [(8, 8), (9, 7), (8, 8), (300, 20)]
    paths = [save_grey(tmp_path / f"{n}.png", 60 * n, size) for n, size in enumerate(sizes)]
    probabilities = predict(classifier, paths).table["probability"].tolist()
    assert probabilities == sorted(probabilities, reverse=True)


def test_files_that_cannot_be_read_are_left_out_and_listed_with_the_reason(tmp_path, classifier):
    good, other = save_grey(tmp_path / "good.png", 0), save_grey(tmp_path / "other.png", 255)
    note, cut, missing = tmp_path / "note.png", tmp_path / "cut.jpg", tmp_path / "missing.png"
    note.write_text("no image")
    save_grey(cut, 0, (200, 200))
    cut.write_bytes(cut.read_bytes()[:-400])  # its header can still be read
    scored = predict(classifier, [note, good, cut, missing, other])
    assert scored.table["path"].tolist() == [str(good), str(other)]
    assert scored.table["label"].tolist() == ["crack", "intact"]
    assert set(scored.unreadable) == {note, cut, missing}
    assert scored.unreadable[note] == "not an image"
    assert "truncated" in scored.unreadable[cut]


def test_the_table_has_its_columns_even_if_no_file_can_be_read(tmp_path, classifier):
    (tmp_path / "note.png").write_text("no image")
    scored = predict(classifier, [tmp_path / "note.png"])
    assert list(scored.table) == ["path", "probability", "label"]
    assert len(scored.table) == 0


def test_a_photo_on_its_side_is_scored_upright(tmp_path, classifier):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert predict(classifier, [path]).table["label"].tolist() == ["crack"]


def test_a_folder_is_a_model_without_any_registry(folder, monkeypatch):
    monkeypatch.setattr(tracking, "connect", lambda: pytest.fail("the registry was asked"))
    loaded, description = load_model("cracks", str(folder))
    assert loaded.decision == DECISION
    assert description == f"the model in {folder}"


@pytest.mark.parametrize(
    ("wanted", "description"),
    [
        ("2", "cracks version 2, trained on drawn images (demo)"),
        ("1", "cracks version 1"),
        ("challenger", "cracks version 1 (challenger)"),
    ],
)
def test_a_registered_model_is_found_by_version_or_alias(registry, classifier, wanted, description):
    loaded, said = load_model("cracks", wanted)
    assert said == description
    assert loaded.content_hash() == classifier.content_hash()


def test_the_default_is_production_else_challenger_and_it_says_which(registry):
    assert load_model("cracks", None)[1] == "cracks version 1 (challenger)"
    registry.client.set_registered_model_alias("cracks", "production", "2")
    assert load_model("cracks", None)[1] == "cracks version 2 (production), trained on drawn images (demo)"


def test_the_default_is_the_starter_where_the_challenger_has_seen_drawings_alone(registry):
    registry.client.set_registered_model_alias("cracks", "challenger", "2")
    loaded, said = load_model("cracks", None)
    assert said == (
        "the starter model, trained on METU and SDNET2018, because no model of cracks trained on real concrete is "
        "registered yet"
    )
    assert loaded.content_hash() == load_starter().content_hash()
    assert load_model("cracks", "challenger")[1] == "cracks version 2 (challenger), trained on drawn images (demo)"


def test_the_default_is_the_starter_where_nothing_is_registered(registry):
    assert load_model("other", None)[1].startswith("the starter model")


def test_the_starter_needs_no_registry(monkeypatch):
    monkeypatch.setattr(tracking, "connect", lambda: pytest.fail("the registry was asked"))
    assert load_model("cracks", "starter")[1] == "the starter model, trained on METU and SDNET2018"


@pytest.mark.parametrize(
    ("name", "wanted", "named"),
    [
        ("cracks", "3", "'3' of cracks"),
        ("cracks", "champion", "'champion' of cracks"),
        ("cracks", "models/typo", "'models/typo' of cracks"),
        ("other", "1", "'1' of other"),
    ],
)
def test_a_model_that_does_not_exist_is_named_with_how_to_make_one(registry, name, wanted, named):
    with pytest.raises(CracksError, match=rf"no model {named} in sqlite.*Run `make run` first") as caught:
        load_model(name, wanted)
    assert caught.value.exit_code == 2


def test_a_version_whose_files_are_gone_is_said_to_be_unavailable(registry):
    registry.client.create_model_version("cracks", str(registry.root / "gone"))
    with pytest.raises(UnavailableError, match=r"cracks version 3 cannot be fetched: .*make run"):
        load_model("cracks", "3")


def test_a_server_that_fails_is_not_taken_for_a_registry_without_the_model(registry, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_):
        raise MlflowException("connection refused\nand so on")

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(UnavailableError, match=r"failed: connection refused\. Try again"):
        load_model("cracks", None)
