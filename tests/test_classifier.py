import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import CracksError
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.classifier import Classifier
from pipeline.models.decision import Decision
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras

DECISION = Decision(threshold=0.5, review_from=0.4, review_to=0.6)


def graph(*, weight=-1.0, image_size_px=32, slope=2.0, intercept=-0.5):
    """An exported graph whose logit is `weight` times the mean of each of red, green and blue."""
    network = keras.Sequential(
        [keras.Input((None, None, 3), name="normalised"), keras.layers.GlobalAveragePooling2D(name="mean")], name="net"
    )
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, image_size_px, [head])
    head.set_weights([np.full((3, 1), weight), np.zeros(1)])
    return calibrated(classifier, Calibration((Platt(slope, intercept),)))


def save(folder, model, decision=DECISION):
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "decision.json").write_text(json.dumps(decision.as_dict()))
    return folder


def test_a_saved_classifier_is_loaded_with_its_graph_and_its_decision(tmp_path):
    model = graph()
    loaded = Classifier.load(save(tmp_path / "model", model))
    batch = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    assert loaded.decision == DECISION
    np.testing.assert_array_equal(loaded.model(batch)["probability"], model(batch)["probability"])


@pytest.mark.parametrize("folders", [("artifacts", "artifacts/served"), ("data", "extra_files")], ids=["now", "before"])
def test_a_classifier_is_loaded_from_the_layout_of_the_registry(tmp_path, folders):
    plain = save(tmp_path / "plain", graph())
    fetched = tmp_path / "fetched"
    for folder, name in zip(folders, ("model.keras", "decision.json"), strict=True):
        (fetched / folder).mkdir(parents=True, exist_ok=True)
        (fetched / folder / name).write_bytes((plain / name).read_bytes())
    assert Classifier.load(fetched).content_hash() == Classifier.load(plain).content_hash()


@pytest.mark.parametrize("name", ["model.keras", "decision.json"])
def test_a_missing_file_is_named_with_the_command_that_writes_it(tmp_path, name):
    folder = save(tmp_path / "model", graph())
    (folder / name).unlink()
    with pytest.raises(CracksError, match=rf"no model that can be loaded.*{name}.*`dvc repro`"):
        Classifier.load(folder)


@pytest.mark.parametrize("content", ["{", '{"threshold": 0.5}', "[0.5]"])
def test_an_incomplete_decision_is_refused(tmp_path, content):
    folder = save(tmp_path / "model", graph())
    (folder / "decision.json").write_text(content)
    with pytest.raises(CracksError, match="no model that can be loaded"):
        Classifier.load(folder)


def test_a_truncated_model_is_refused(tmp_path):
    folder = save(tmp_path / "model", graph())
    whole = (folder / "model.keras").read_bytes()
    (folder / "model.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CracksError, match="no model that can be loaded"):
        Classifier.load(folder)


def test_probabilities_are_in_the_order_of_the_images_for_any_sizes():
    class Greys:
        sizes = np.array([(8, 8), (4, 6), (8, 8), (4, 6)])

        def pixels(self, position):
            return np.full((*self.sizes[position], 3), 40 * position, np.uint8)

    probabilities = Classifier(graph(), DECISION).probabilities(Greys(), progress="scoring")
    assert probabilities.shape == (4,)
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert len(set(probabilities)) == 4


def test_two_files_of_one_model_have_one_content_hash(tmp_path):
    model = graph()
    hashes = {Classifier.load(save(tmp_path / name, model)).content_hash() for name in ("one", "other")}
    assert hashes == {Classifier(model, DECISION).content_hash()}


def test_an_equal_model_built_again_has_the_same_content_hash():
    assert Classifier(graph(), DECISION).content_hash() == Classifier(graph(), DECISION).content_hash()


@pytest.mark.parametrize(
    "other",
    [
        {"weight": np.nextafter(np.float32(-1), 0)},
        {"image_size_px": 33},
        {"slope": 2.001},
        {"intercept": -0.501},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_content_hash_differs_for_another_graph(other):
    assert Classifier(graph(), DECISION).content_hash() != Classifier(graph(**other), DECISION).content_hash()


@pytest.mark.parametrize("name", ["threshold", "review_from", "review_to", "prevalence"])
def test_the_content_hash_differs_for_another_decision(name):
    model = graph()
    other = replace(DECISION, **{name: 0.55})
    assert Classifier(model, DECISION).content_hash() != Classifier(model, other).content_hash()


def test_the_hashed_configuration_contains_no_memory_addresses():
    config = graph().get_config()
    assert json.loads(json.dumps(config)) == json.loads(json.dumps(config, default=str))
