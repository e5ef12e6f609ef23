"""Hands what was answered to the prediction log, in a thread of its own that may lag behind and may lose rows.

Answering comes first: nothing here waits, fails a request, or takes more than a small share of a core.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.images import Pixels, look
from pipeline.prediction_log import PredictionLog, embeddings_of

log = logging.getLogger(__name__)

MAX_WAITING_PIXELS = 50_000_000  # 150 MB
MAX_CORE_SHARE = 0.2
FLUSH_S = 60.0  # between two files of the log, which a kill can cost
MAX_ROWS = 1000  # of one file


@dataclass(frozen=True)
class Seen:
    """An image that was answered: uint8 (height, width, 3), and features (n_features,)."""

    time: datetime
    model_version: str
    source: Literal["predict", "map"]
    photo: str
    pixels: Pixels
    probability: float
    features: npt.NDArray[np.float32]

    @property
    def n_pixels(self) -> int:
        """How many pixels it has."""
        return int(self.pixels.shape[0] * self.pixels.shape[1])


class Recorder:
    """The thread that writes the log."""

    def __init__(self, target: PredictionLog, on_drop: Callable[[], object]) -> None:
        """Take the log, and who is told of an image that there was no time for."""
        self._target = target
        self._on_drop = on_drop
        self._waiting: queue.SimpleQueue[Seen | None] = queue.SimpleQueue()
        self._n_pixels = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is waiting, and end."""
        self._waiting.put(None)
        self._thread.join()

    def put(self, seen: Seen) -> None:
        """Let an image be written soon, or drop it where too much is waiting; returns at once."""
        with self._lock:
            is_full = self._n_pixels + seen.n_pixels > MAX_WAITING_PIXELS
            if not is_full:
                self._n_pixels += seen.n_pixels
        if is_full:
            self._on_drop()
        else:
            self._waiting.put(seen)

    def _work(self) -> None:
        rows: list[dict[str, Any]] = []
        is_open = True
        flush_at_s = time.monotonic() + FLUSH_S
        while is_open:
            try:
                seen = self._waiting.get(timeout=max(0.0, flush_at_s - time.monotonic()))
            except queue.Empty:
                pass
            else:
                is_open = seen is not None
                if seen is not None:
                    rows.append(self._row(seen))
            if rows and (not is_open or len(rows) >= MAX_ROWS or time.monotonic() >= flush_at_s):
                self._write(rows)
                rows = []
            if time.monotonic() >= flush_at_s:
                flush_at_s = time.monotonic() + FLUSH_S

    def _row(self, seen: Seen) -> dict[str, Any]:
        started_s = time.perf_counter()
        row = {
            "time": seen.time,
            "model_version": seen.model_version,
            "source": seen.source,
            "photo": seen.photo,
            "probability": seen.probability,
            **look(seen.pixels),
            "embedding": embeddings_of(seen.features[None])[0],
        }
        with self._lock:
            self._n_pixels -= seen.n_pixels
        time.sleep((time.perf_counter() - started_s) * (1 / MAX_CORE_SHARE - 1))
        return row

    def _write(self, rows: list[dict[str, Any]]) -> None:
        try:
            self._target.append(pd.DataFrame(rows))
        except Exception as error:  # a full disk, for one: the log loses rows, no request fails
            log.warning("%d rows of the prediction log are lost: %s", len(rows), error)
            for _ in rows:
                self._on_drop()
