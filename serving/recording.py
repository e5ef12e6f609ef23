"""Writes scored images to the prediction log and, if that is switched on, stores them for a person to label.

A background thread does that, which may lag behind and drop rows. Requests have priority: recording never delays or
fails one, and takes at most a fifth of a core.
"""

import hashlib
import io
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from pipeline.data.images import FORMATS, Pixels, encode_png, image_statistics
from pipeline.files import replacing
from pipeline.monitoring.prediction_log import PredictionLog, embeddings_of, keep_newest

log = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 150_000_000
MAX_CORE_SHARE = 0.2
FLUSH_S = 60.0  # between two files of the log; the most that a kill can lose
MAX_ROWS = 1000  # of a file
IMAGES = Path("images")  # below the folder of the log
FREED_SHARE = 0.05  # of the limit, freed at once: scanning the folder for each image would be slow


@dataclass(frozen=True)
class ScoredImage:
    """An image that was scored."""

    time: datetime  # of the request
    model_version: str
    source: Literal["predict", "map"]  # route of the request
    photo: str  # name of the file that was sent
    pixels: Pixels  # RGB, uint8, (height, width, 3)
    content: bytes | None  # of the file; None for a tile of a photo
    probability: float  # of a crack, 0..1
    features: npt.NDArray[np.float32]  # (n_features,)

    @property
    def n_bytes(self) -> int:
        """The memory that the image takes, in bytes."""
        return self.pixels.nbytes + len(self.content or b"")


class KeptImages:
    """The images in a folder, which several servers may share; above the limit the oldest are deleted.

    A file is named by the SHA-256 of its content, so that an image that is sent again is stored once.
    """

    def __init__(self, folder: Path, max_mb: float) -> None:
        """Set the folder, which need not exist, and the limit of the total size of its files."""
        self._folder = folder.absolute()
        self._max_bytes = max_mb * 1e6
        self._n_bytes_new = float("inf")  # the first image triggers a scan of the files of earlier runs

    def keep(self, content: bytes) -> Path:
        """Write the bytes of an image that can be decoded; return its path. Raises OSError if it cannot be written."""
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            suffix = f".{str(image.format).lower()}"
        path = self._folder / f"{hashlib.sha256(content).hexdigest()}{suffix}"
        if path.exists():
            path.touch()  # as recent as its last row in the log
            return path
        with replacing(path) as partial:
            partial.write_bytes(content)
        self._n_bytes_new += len(content)
        if self._n_bytes_new > FREED_SHARE * self._max_bytes:
            found = sorted(os.scandir(self._folder), key=lambda file: file.stat().st_mtime_ns, reverse=True)
            keep_newest(map(Path, found), (1 - FREED_SHARE) * self._max_bytes)
            self._n_bytes_new = 0
        return path


class Recorder:
    """Writes the prediction log in a thread."""

    def __init__(self, target: PredictionLog, images: KeptImages | None, on_drop: Callable[[], object]) -> None:
        """Set the log, the store of images (None: store none), and what to call for each row or image dropped."""
        self._target = target
        self._images = images
        self._on_drop = on_drop
        self._errors: list[str] = []  # a reason for each image that could not be stored
        self._queue: queue.SimpleQueue[ScoredImage | None] = queue.SimpleQueue()
        self._n_bytes = 0
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write the queued images at full speed, and stop."""
        self._is_stopping.set()
        self._queue.put(None)
        self._thread.join()

    def put(self, image: ScoredImage) -> None:
        """Queue an image, or drop it if the queue is full; returns at once."""
        with self._lock:
            is_full = self._n_bytes + image.n_bytes > MAX_QUEUED_BYTES
            if not is_full:
                self._n_bytes += image.n_bytes
        if is_full:
            self._on_drop()
        else:
            self._queue.put(image)

    def _work(self) -> None:
        rows: list[dict[str, Any]] = []
        is_open = True
        flush_at_s = time.monotonic() + FLUSH_S
        while is_open:
            with suppress(queue.Empty):
                image = self._queue.get(timeout=max(0.0, flush_at_s - time.monotonic()))
                is_open = image is not None
                if image is not None:
                    rows.append(self._row(image))
            is_due = time.monotonic() >= flush_at_s
            if rows and (not is_open or len(rows) >= MAX_ROWS or is_due):
                self._write(rows)
                rows = []
            if is_due:
                flush_at_s = time.monotonic() + FLUSH_S

    def _row(self, image: ScoredImage) -> dict[str, Any]:
        started_s = time.perf_counter()
        row = {
            "time": image.time,
            "model_version": image.model_version,
            "source": image.source,
            "photo": image.photo,
            "path": self._keep(image),
            "probability": image.probability,
            **image_statistics(image.pixels),
            "embedding": embeddings_of(image.features[None])[0],
        }
        with self._lock:
            self._n_bytes -= image.n_bytes
        self._is_stopping.wait((time.perf_counter() - started_s) * (1 / MAX_CORE_SHARE - 1))
        return row

    def _keep(self, image: ScoredImage) -> str | None:
        if self._images is None:
            return None
        try:
            return str(self._images.keep(encode_png(image.pixels) if image.content is None else image.content))
        except OSError as error:
            self._errors.append(str(error))
            self._on_drop()
            return None

    def _write(self, rows: list[dict[str, Any]]) -> None:
        try:
            self._target.append(pd.DataFrame(rows))
        except Exception as error:  # such as a full disk: rows are lost, no request fails
            log.warning("%d rows of the prediction log are lost: %s", len(rows), error)
            for _ in rows:
                self._on_drop()
        if self._errors:
            log.warning("%d images could not be kept: %s", len(self._errors), self._errors[-1])
            self._errors.clear()
