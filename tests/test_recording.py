"""Recording never delays and never fails a request."""

import hashlib
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import image_statistics
from pipeline.monitoring.prediction_log import PredictionLog, embeddings_of
from serving import recording
from serving.recording import KeptImages, Recorder, ScoredImage

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def seen(pixels, content=None):
    return ScoredImage(NOW, "3", "predict", "a.jpg", pixels, content, 0.7, np.arange(40, dtype=np.float32))


class Broken:
    def append(self, rows):
        raise OSError("No space left on device")


class Stuck:
    def __init__(self):
        self.may_go_on = threading.Event()

    def append(self, rows):
        assert self.may_go_on.wait(20)


@pytest.fixture
def dropped():
    return []


def test_an_image_becomes_a_row_with_its_statistics_and_embedding(tmp_path, draw_tile, dropped):
    pixels = draw_tile(0)
    recorder = Recorder(PredictionLog(tmp_path), None, lambda: dropped.append(1))
    recorder.start()
    recorder.put(seen(pixels))
    recorder.stop()
    [row] = PredictionLog(tmp_path).read().to_dict(orient="records")
    assert (row["time"], row["model_version"], row["source"], row["photo"]) == (NOW, "3", "predict", "a.jpg")
    assert row["probability"] == pytest.approx(0.7)
    assert {name: row[name] for name in image_statistics(pixels)} == pytest.approx(image_statistics(pixels), rel=1e-5)
    np.testing.assert_allclose(row["embedding"], embeddings_of(np.arange(40, dtype=np.float32)[None])[0], rtol=1e-5)
    assert dropped == []


def test_a_log_that_cannot_be_written_loses_rows_and_nothing_else(draw_tile, dropped, caplog):
    recorder = Recorder(Broken(), None, lambda: dropped.append(1))
    recorder.start()
    for seed in range(3):
        recorder.put(seen(draw_tile(seed)))
    recorder.stop()
    assert len(dropped) == 3
    assert "3 rows of the prediction log are lost: No space left on device" in caplog.text


def test_when_too_much_waits_images_are_dropped_at_once(monkeypatch, draw_tile, dropped):
    monkeypatch.setattr(recording, "MAX_QUEUED_BYTES", 10 * 3 * 64 * 64)
    target = Stuck()
    monkeypatch.setattr(recording, "MAX_ROWS", 1)
    recorder = Recorder(target, None, lambda: dropped.append(1))
    recorder.start()
    pixels = draw_tile(0)
    started_s = time.monotonic()
    for _ in range(100):
        recorder.put(seen(pixels))
    assert time.monotonic() - started_s < 1
    assert 85 <= len(dropped) <= 90
    target.may_go_on.set()
    recorder.stop()


def test_written_images_free_space_in_the_queue(tmp_path, monkeypatch, draw_tile, dropped):
    monkeypatch.setattr(recording, "MAX_QUEUED_BYTES", 3 * 64 * 64)
    recorder = Recorder(PredictionLog(tmp_path), None, lambda: dropped.append(1))
    recorder.start()
    deadline_s = time.monotonic() + 20
    n_taken = 0
    while n_taken < 3 and time.monotonic() < deadline_s:
        n_before = len(dropped)
        recorder.put(seen(draw_tile(0)))
        n_taken += len(dropped) == n_before
    recorder.stop()
    assert len(PredictionLog(tmp_path).read()) == 3


def test_without_a_folder_no_image_is_kept(tmp_path, draw_tile, encode, dropped):
    recorder = Recorder(PredictionLog(tmp_path), None, lambda: dropped.append(1))
    recorder.start()
    recorder.put(seen(draw_tile(0), encode(draw_tile(0))))
    recorder.stop()
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]
    assert PredictionLog(tmp_path).read()["path"].isna().all()


def test_an_image_that_is_kept_is_found_by_the_path_of_its_row(tmp_path, draw_tile, encode, dropped):
    content = encode(draw_tile(0))
    recorder = Recorder(PredictionLog(tmp_path), KeptImages(tmp_path / "images", 1), lambda: dropped.append(1))
    recorder.start()
    recorder.put(seen(draw_tile(0), content))
    recorder.put(seen(draw_tile(1)))  # a tile of a photo
    recorder.stop()
    image, tile = (Path(path) for path in PredictionLog(tmp_path).read()["path"])
    assert image.read_bytes() == content
    assert image.name == f"{hashlib.sha256(content).hexdigest()}.jpeg"
    assert tile.suffix == ".png"
    assert np.array_equal(np.asarray(Image.open(tile)), draw_tile(1))
    assert dropped == []


def test_an_image_that_cannot_be_stored_still_has_its_row(tmp_path, draw_tile, encode, dropped, caplog):
    (tmp_path / "images").write_text("in the way")
    recorder = Recorder(PredictionLog(tmp_path), KeptImages(tmp_path / "images", 1), lambda: dropped.append(1))
    recorder.start()
    for seed in range(3):
        recorder.put(seen(draw_tile(seed), encode(draw_tile(seed))))
    recorder.stop()
    assert PredictionLog(tmp_path).read()["path"].isna().tolist() == [True] * 3
    assert len(dropped) == 3
    assert "3 images could not be kept: " in caplog.text


def test_the_file_of_an_image_that_waits_counts_too(tmp_path, monkeypatch, draw_tile, dropped):
    monkeypatch.setattr(recording, "MAX_QUEUED_BYTES", 3 * 64 * 64)
    recorder = Recorder(PredictionLog(tmp_path), None, lambda: dropped.append(1))
    recorder.put(seen(draw_tile(0), b"file"))
    assert dropped == [1]
