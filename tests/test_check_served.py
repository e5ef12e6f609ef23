import timeit
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import write_tiny_model

from pipeline.inference.served import SERVED_FILES, ServedModel
from pipeline.registry.check_served import check, check_in_subprocess


@pytest.fixture
def folder(tmp_path):
    write_tiny_model(tmp_path / "model", golden_error=0.25)
    return tmp_path / "model"


def test_a_fresh_process_tells_the_difference_time_size_and_memory_of_the_served_form(folder):
    measured = check_in_subprocess(folder, 48, 64)
    assert measured.golden_difference == pytest.approx(0.25, abs=1e-4)
    assert measured.p95_ms > 0
    assert measured.size_mb == pytest.approx(sum((folder / name).stat().st_size for name in SERVED_FILES) / 1e6)
    assert 20 < measured.resident_mb < 10_000  # Python and NumPy alone take more than 20


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
