"""The stage trains a tracer, or takes the one that ships, and measures it on drawn cracks."""

import json
import re

import pandas as pd
import pytest
from two_datasets import PARAMS

from pipeline import train_tracer
from pipeline.crack_lines.tracer import tracer_identity
from pipeline.errors import CracksError
from pipeline.evaluation import line_scores
from pipeline.models.model_files import TRACER_FILE
from pipeline.params import Params

TRAINED = {"kind": "drawn_cracks", "n_steps": 4, "seed": 0}


@pytest.fixture
def run(two_datasets, tmp_path, monkeypatch):
    """A function that runs the stage on few drawn images, with `tracer` of params.yaml, and returns its scores."""
    monkeypatch.setattr(line_scores, "N_DRAWN", 12)

    def run(tracer, manifest=two_datasets.manifest):
        train_tracer.run(
            Params.model_validate(PARAMS | {"tracer": tracer}),
            datasets=two_datasets.datasets,
            manifest=manifest,
            checkpoints=tmp_path / "checkpoints",
            out=tmp_path / "tracer",
            metrics=tmp_path / "tracer.json",
        )
        return json.loads((tmp_path / "tracer.json").read_text())

    return run


def test_without_settings_it_is_the_tracer_that_ships_and_measured_the_same_each_time(run, tmp_path):
    scores = run(None)
    assert tracer_identity(tmp_path / "tracer" / "tracer.xml") == tracer_identity(TRACER_FILE)
    assert 0.3 < scores["lines"] <= 1
    assert run(None) == scores


@pytest.mark.parametrize("tracer", [None, TRAINED])
def test_without_an_intact_image_to_draw_on_the_error_says_what_to_do_before_a_training(
    run, two_datasets, tmp_path, tracer
):
    manifest = pd.read_parquet(two_datasets.manifest)
    manifest[manifest["label"] == "crack"].to_parquet(tmp_path / "cracked.parquet")
    with pytest.raises(CracksError, match=r"The test side has no intact image .* split.photos"):
        run(tracer, tmp_path / "cracked.parquet")


@pytest.mark.slow
def test_a_killed_training_is_resumed_from_what_it_kept_and_leaves_a_tracer_of_its_own(
    run, tmp_path, monkeypatch, caplog
):
    from pipeline.training import tracer_fitting

    monkeypatch.setattr(tracer_fitting, "PART_STEPS", 1)
    caplog.set_level("INFO", "pipeline")
    grey_image = train_tracer.grey_image

    def killed(pixels):
        if list(tmp_path.glob("checkpoints/*/*.h5")):
            raise ValueError("killed")
        return grey_image(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(train_tracer, "grey_image", killed)
        with pytest.raises(Exception, match="killed"):  # TensorFlow's, from a thread of its own
            run(TRAINED)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    n_killed = len(caplog.messages)
    scores = run(TRAINED)
    *progress, measured = [message.split(", loss")[0] for message in caplog.messages]
    assert progress == [
        *(f"tracer: {n} of 4 steps" for n in range(1, n_killed + 1)),
        f"tracer: resuming after {n_killed} of 4 steps",
        *(f"tracer: {n} of 4 steps" for n in range(n_killed + 1, 5)),
    ]
    assert re.fullmatch(
        rf"tracer: f1 {scores['lines']:.4f}, precision \S+, recall \S+ of crack lines on 12 drawn images", measured
    )
    assert tracer_identity(tmp_path / "tracer" / "tracer.xml") != tracer_identity(TRACER_FILE)
    assert not (tmp_path / "checkpoints").exists()
