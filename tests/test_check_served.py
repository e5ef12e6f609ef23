import timeit
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import write_blind_tracer, write_tiny_model

from pipeline.errors import CracksError
from pipeline.inference.served import ServedModel
from pipeline.registry.check_served import check, check_in_subprocess


@pytest.fixture
def folder(tmp_path):
    write_tiny_model(tmp_path / "model", golden_error=0.25)
    write_blind_tracer(tmp_path / "model")
    return tmp_path / "model"


def test_a_fresh_process_tells_the_difference_time_size_and_memory_of_the_served_form(folder):
    measured = check_in_subprocess(folder, 48, 64)
    assert measured.golden_difference == pytest.approx(0.25, abs=1e-4)
    assert measured.p95_ms > 0
    assert measured.size_mb == pytest.approx(sum(path.stat().st_size for path in folder.rglob("*.*")) / 1e6)
    assert 20 < measured.resident_mb < 10_000  # Python and NumPy alone take more than 20


def test_a_model_whose_tracer_cannot_be_loaded_fails_the_check(folder):
    (folder / "tracer" / "tracer.xml").write_text("no graph")
    with pytest.raises(CracksError, match=r"tracer.xml is no tracer of crack lines"):
        check_in_subprocess(folder, 48, 64)


def test_times_are_those_of_one_image(folder, monkeypatch):
    clock = iter(np.arange(10_000))
    sizes = []
    monkeypatch.setattr(ServedModel, "outputs", lambda model, batch: sizes.append(batch.shape) or golden(batch))
    repeat = partial(timeit.repeat, timer=lambda: float(next(clock)))
    monkeypatch.setattr("pipeline.registry.check_served.timeit", SimpleNamespace(repeat=repeat))
    assert check(folder, 48, 64)["p95_ms"] == 1000
    assert sizes.count((1, 48, 64, 3)) >= 100


def golden(batch):
    return {"probability": np.full(len(batch), 0.5, np.float32)}
