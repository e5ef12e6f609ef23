"""Resources that the routes share: settings, model, metrics, decoders, batcher and recorder."""

import asyncio
import threading
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request

from pipeline.inference.openvino_cpu import N_THREADS
from pipeline.monitoring.heartbeat import watch_heartbeat
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import Serve
from serving.batching import Batcher
from serving.current_model import LoadedModel, ModelHolder
from serving.limits import RETRY_SOON
from serving.problems import Problem
from serving.prometheus_metrics import Metrics
from serving.recording import IMAGES, KeptImages, Recorder
from serving.uploads import Decoder


class AppState:
    """Resources that the routes share; one instance per app."""

    def __init__(self, settings: Serve, holder: ModelHolder, prediction_log: PredictionLog) -> None:
        self.settings = settings
        self.holder = holder
        self.metrics = Metrics(holder)
        self.batcher = Batcher(settings.batch_wait_ms, settings.max_batch_images, self.metrics.batch.observe)
        # Apart, so that photos, which take seconds, delay no image.
        n_requests, on_slow = settings.max_requests, self.metrics.slow_decoders.inc
        total, largest = settings.max_decoded_megapixels, settings.max_photo_megapixels
        # An image for each thread and one that is next: more would delay little work behind much work.
        for_images = min((N_THREADS + 1) * settings.max_image_megapixels, total - largest)
        self.image_decoder = Decoder(settings.max_image_megapixels, for_images, n_requests, N_THREADS, on_slow)
        # While it is decoded, a photo takes several times its memory.
        self.photo_decoder = Decoder(largest, total - for_images, n_requests, max(1, N_THREADS // 2), on_slow)
        self.overlays = asyncio.Semaphore(N_THREADS)  # images that are decoded and scored for overlays at a time
        self.archiving = asyncio.Lock()  # one archive of reviews at a time, for its memory
        max_mb = settings.kept_images_mb
        images = None if max_mb is None else KeptImages(prediction_log.folder / IMAGES, max_mb)
        self.recorder = Recorder(prediction_log, images, self.metrics.dropped.inc)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start to follow the registry, to write the prediction log, and to watch the heartbeat of the schedules."""
        self.holder.start()
        self.recorder.start()
        threading.Thread(target=watch_heartbeat, args=(self._stopping,), name="watch", daemon=True).start()

    def stop(self) -> None:
        """Stop all threads, after the last request; does not wait for a notification that is being sent."""
        self._stopping.set()
        self.holder.stop()
        self.batcher.close()
        self.image_decoder.close()
        self.photo_decoder.close()
        self.recorder.stop()

    def loaded_model(self) -> LoadedModel:
        """Return the current model. Raises Problem if there is none."""
        if self.holder.current is None:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "There is no model yet: none trained on real concrete is registered (a demo does not count), or the "
                "registry does not answer. Register one with `make run`, or start the server with --starter.",
                headers=RETRY_SOON,
            )
        return self.holder.current


async def _state_of(request: Request) -> AppState:
    state: AppState = request.app.state.state
    return state


State = Annotated[AppState, Depends(_state_of)]  # argument of a route
