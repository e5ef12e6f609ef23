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

from pipeline.data.images import Pixels, encode_png, image_statistics
from pipeline.monitoring.prediction_log import PredictionLog, embeddings_of
from serving.kept_images import KeptImages

log = logging.getLogger(__name__)

MAX_WAITING_BYTES = 150_000_000
MAX_CORE_SHARE = 0.2
FLUSH_S = 60.0  # between two files of the log, which a kill can cost
MAX_ROWS = 1000  # of one file


@dataclass(frozen=True)
class Seen:
    """An image that was answered.

    Attributes:
        time: when.
        model_version: which model answered.
        source: what was asked for.
        photo: name of the photo that it is, or is a part of.
        pixels: RGB, uint8, (height, width, 3).
        content: its file; None of a part of a photo, which has none.
        probability: of a crack, 0..1.
        features: (n_features,).
    """

    time: datetime
    model_version: str
    source: Literal["predict", "map"]
    photo: str
    pixels: Pixels
    content: bytes | None
    probability: float
    features: npt.NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        return self.pixels.nbytes + len(self.content or b"")


class Recorder:
    """The thread that writes the log."""

    def __init__(self, target: PredictionLog, images: KeptImages | None, on_drop: Callable[[], object]) -> None:
        """Take the log, where images are kept if they are, and who is told of each image that was lost."""
        self._target = target
        self._images = images
        self._on_drop = on_drop
        self._why_lost: list[str] = []  # a reason for each image that could not be kept
        self._waiting: queue.SimpleQueue[Seen | None] = queue.SimpleQueue()
        self._n_bytes = 0
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is waiting, now without sparing the cores, and end."""
        self._is_stopping.set()
        self._waiting.put(None)
        self._thread.join()

    def put(self, seen: Seen) -> None:
        """Let an image be written soon, or drop it where too much is waiting; returns at once."""
        with self._lock:
            is_full = self._n_bytes + seen.n_bytes > MAX_WAITING_BYTES
            if not is_full:
                self._n_bytes += seen.n_bytes
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
            "path": self._kept(seen),
            "probability": seen.probability,
            **image_statistics(seen.pixels),
            "embedding": embeddings_of(seen.features[None])[0],
        }
        with self._lock:
            self._n_bytes -= seen.n_bytes
        self._is_stopping.wait((time.perf_counter() - started_s) * (1 / MAX_CORE_SHARE - 1))
        return row

    def _kept(self, seen: Seen) -> str | None:
        if self._images is None:
            return None
        try:
            return str(self._images.keep(encode_png(seen.pixels) if seen.content is None else seen.content))
        except OSError as error:
            self._why_lost.append(str(error))
            self._on_drop()
            return None

    def _write(self, rows: list[dict[str, Any]]) -> None:
        try:
            self._target.append(pd.DataFrame(rows))
        except Exception as error:  # a full disk, for one: the log loses rows, no request fails
            log.warning("%d rows of the prediction log are lost: %s", len(rows), error)
            for _ in rows:
                self._on_drop()
        if self._why_lost:
            log.warning("%d images could not be kept: %s", len(self._why_lost), self._why_lost[-1])
            self._why_lost.clear()
