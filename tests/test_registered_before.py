"""A model that version 0.1.0 registered, and a decision that it kept, are as good as those of today.

registered_before.zip is the folder of that model in the registry: a graph whose probability of a crack is
sigmoid((130 - grey level) / 10), with all that travelled beside it.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from registry import MODEL, TAGS, make_registry

from pipeline.crack_lines.tracer import tracer_file
from pipeline.errors import CracksError
from pipeline.models.classifier import Classifier
from pipeline.models.model_files import TRACER_FILE
from pipeline.monitoring.monitored_model import monitored_model
from pipeline.params import load_params
from pipeline.registry import promote, runs, tracking
from pipeline.registry.gate import NOT_MEASURED
from pipeline.registry.history import opened
from pipeline.registry.model_lookup import found_model
from pipeline.registry.versions import fetch
from serving.current_model import load_verified
from serving.wanted_version import Registry

DARK, LIGHT = np.full((1, 40, 40, 3), 120, np.uint8), np.full((1, 40, 40, 3), 140, np.uint8)
PROBABILITIES = [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]


@pytest.fixture
def before(tmp_path, empty_store, monkeypatch):
    """A project with that model as versions 1 and 2, of which the first is in production; it returns its params."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("DVC_ROOT", "")
    made = make_registry(tmp_path / "project", tmp_path, empty_store)
    with zipfile.ZipFile(Path(__file__).with_name("registered_before.zip")) as archive:
        archive.extractall(tmp_path / "model")
    run_id = made.client.create_run("0", tags={runs.DIRTY_TAG: "false"}).info.run_id
    for _ in range(2):
        made.client.create_model_version(MODEL, (tmp_path / "model").as_uri(), run_id, tags=TAGS)
    made.client.set_registered_model_alias(MODEL, "production", "1")
    made.client.set_registered_model_alias(MODEL, "challenger", "2")
    tags = {"action": "promotion", "outcome": "promoted", "version": "1", "previous": "", "by": "Ada", "text": "",
            "best": "1", "process": "{}"}  # fmt: skip
    made.client.create_run(tracking.experiment_id(made.client, "cracks-decisions"), start_time=1, tags=tags)
    return load_params(made.root / "params.yaml")


@pytest.mark.parametrize("reference", ["1", "production", "challenger", None])
def test_it_is_found_and_answers_as_it_did(before, reference):
    with found_model(MODEL, reference) as found:
        model = found.load()
        assert model.detector is not None
        assert model.golden_difference() < 1e-5
    answers = [float(model.outputs(image)["probability"][0]) for image in (DARK, LIGHT)]
    assert answers == pytest.approx(PROBABILITIES, abs=1e-4)
    assert model.decision.as_dict() == {"threshold": 0.5, "review_from": 0.4, "review_to": 0.6}
    with pytest.raises(CracksError, match="not recorded what share of cracks this model assumes"):
        model.labels(model.outputs(DARK), 0.1)


def test_its_keras_model_answers_as_it_did(before, tmp_path):
    classifier = Classifier.load(fetch(MODEL, "1", tmp_path / "fetched"))
    answers = [float(classifier.model(image)["probability"][0]) for image in (DARK, LIGHT)]
    assert answers == pytest.approx(PROBABILITIES, abs=1e-4)
    assert classifier.decision.review_to == 0.6


def test_it_is_served_and_watched(before, tmp_path):
    wanted = Registry(MODEL).wanted()
    (tmp_path / "kept").mkdir()
    Registry(MODEL).fetch(wanted, tmp_path / "kept")
    known = load_verified(tmp_path / "kept")[0].detector
    assert tracer_file(tmp_path / "kept") == TRACER_FILE  # it has none of its own
    assert (wanted.number, known is not None) == ("1", True)
    assert monitored_model(MODEL).reference["dataset"].tolist() == ["walls"]


@pytest.mark.slow
def test_it_is_promoted_and_taken_back_and_the_decision_before_still_counts(before):
    decided = promote.run(before, None, dry_run=False, allow_dirty=False, by="Grace")
    assert (decided.outcome, decided.record.version, decided.record.previous) == ("promoted", "2", "1")
    assert decided.results[-1].text == NOT_MEASURED  # how it does on other structures
    assert promote.rollback(before, None, "to see whether it can be done", "Grace").record.version == "1"
    with opened(MODEL) as history:
        kept = [(record.by, record.outcome, record.version) for record in history.records()]
        assert history.production() == "1"
    assert kept == [("Grace", "rolled back", "1"), ("Grace", "promoted", "2"), ("Ada", "promoted", "1")]
