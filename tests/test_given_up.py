"""Work that takes too long is stopped with its request, tested in one process."""

import asyncio
import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
from tiny_model import DECISION

from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.inference.openvino_cpu import N_THREADS
from pipeline.inference.served import Labels
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import Map, load_params
from serving.app import create_app
from serving.current_model import STARTER, LoadedModel
from serving.review_routes import cut_tile

SETTINGS = load_params(Path(__file__).parent.parent / "params.yaml").serve
BATCH_S = 0.08


class Slow:
    """A slow model that counts its batches."""

    decision = DECISION
    detector = None

    def __init__(self):
        self.n_batches = 0
        self._lock = threading.Lock()

    def outputs(self, batch):
        time.sleep(BATCH_S)
        with self._lock:
            self.n_batches += 1
        return {"probability": np.zeros(len(batch), np.float32), "features": np.zeros((len(batch), 4), np.float32)}

    def labels(self, outputs, prevalence=None):
        n = len(outputs["probability"])
        return Labels(outputs["probability"], ["intact"] * n, [""] * n, [None] * n)


def app_with(model, folder, max_seconds=2):
    """Return the API with the model and a limit per request."""
    mapper = CrackMapper(model, Map(tile_px=32, overlap=0, model_mm_per_px=None))
    holder = SimpleNamespace(current=LoadedModel(model, mapper, STARTER, datetime(2026, 11, 1, tzinfo=UTC)))
    return create_app(SETTINGS.model_copy(update={"max_seconds": max_seconds}), holder, PredictionLog(folder), None)


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def test_a_map_that_takes_too_long_is_stopped(tmp_path, encode):
    model = Slow()
    app = app_with(model, tmp_path)
    n_batches = []

    async def ask(client, side_px):
        content = encode(np.zeros((side_px, side_px, 3), np.uint8))
        answer = await client.post("/v1/map", files={"file": ("a.jpg", content)})
        n_batches.append(model.n_batches)
        return answer

    async def main():
        async with client_of(app) as client:
            return await ask(client, 64 * 32), await ask(client, 32)

    late, quick = asyncio.run(main())
    assert late.status_code == 503
    assert "more than 2 s" in late.json()["detail"]
    assert quick.status_code == 200
    assert n_batches[0] < 200  # of 1,024
    assert n_batches[1] <= n_batches[0] + 1 + 2 * N_THREADS  # its own, and those that the threads were running


def test_overlays_delay_no_other_image(tmp_path, encode, monkeypatch):
    monkeypatch.setattr("test_given_up.BATCH_S", 0.5)
    content = encode(np.zeros((32, 32, 3), np.uint8))

    async def main():
        async with client_of(app_with(Slow(), tmp_path, max_seconds=2.5)) as client:  # five batches
            many = [("files", ("a.jpg", content))] * 64
            overlays = [asyncio.create_task(client.post("/v1/predict?explain=true", files=many)) for _ in range(4)]
            while not any(task.done() for task in overlays):
                answer = await client.post("/v1/predict", files=many[:1])
                assert answer.status_code == 200
            return [answer.status_code for answer in await asyncio.gather(*overlays)]

    assert set(asyncio.run(main())) == {503}


def test_cutting_reviews_that_takes_too_long_is_stopped(tmp_path, encode, monkeypatch):
    n_cut = 0

    def cut_slowly(*args, **kwargs):
        nonlocal n_cut
        time.sleep(BATCH_S)
        n_cut += 1
        return cut_tile(*args, **kwargs)

    monkeypatch.setattr("serving.review_routes.cut_tile", cut_slowly)
    tiles = [{"file": 0, "x": 0, "y": 0, "size": 32, "label": "crack"}] * 1000
    files = {"files": ("a.jpg", encode(np.zeros((32, 32, 3), np.uint8)))}

    async def ask(client, tiles):
        reviews = {"reviewer": "r", "model_version": "", "tiles": tiles}
        return await client.post("/v1/reviews", files=files, data={"reviews": json.dumps(reviews)}), n_cut

    async def main():
        async with client_of(app_with(Slow(), tmp_path)) as client:
            return await ask(client, tiles), await ask(client, tiles[:1])

    (late, n_late), (quick, n_quick) = asyncio.run(main())
    assert late.status_code == 503
    assert quick.status_code == 200
    assert n_late < 100
    assert n_quick == n_late + 1
