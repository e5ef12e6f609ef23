"""Batches images of several requests: scoring a batch takes little longer than scoring one image.

While the network is idle, an image is scored at once. While it is busy, images of one size wait some milliseconds for
others.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Pixels
from pipeline.inference.openvino_cpu import N_THREADS
from pipeline.inference.served import ServedModel
from pipeline.models.decision import Verdict

_Key = tuple[ServedModel, float | None, tuple[int, ...]]  # of a group


@dataclass(frozen=True)
class Output:
    """What the model says about one image."""

    probability: float  # corrected, if a prevalence was stated
    uncorrected: float
    features: npt.NDArray[np.float32]  # (n_features,)
    label: Verdict
    in_distribution: bool | None


@dataclass
class _Group:
    """Images of one size and stated prevalence that wait for one model, which are the key of the group."""

    timer: asyncio.Handle
    images: list[Pixels] = field(default_factory=list)
    answers: list["asyncio.Future[Output]"] = field(default_factory=list)


class Batcher:
    """Scores images in batches; belongs to one event loop."""

    def __init__(self, wait_ms: float, max_images: int, on_batch: Callable[[int], object]) -> None:
        """Set how long an image waits for others, the largest batch, and what to call with the size of each batch."""
        self._wait_s = wait_ms / 1000
        self._max_images = max_images
        self._on_batch = on_batch
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="network")
        self._groups: dict[_Key, _Group] = {}
        self.n_running = 0

    def submit(self, model: ServedModel, pixels: Pixels, prevalence: float | None = None) -> "asyncio.Future[Output]":
        """Return a future with the output of `model` for one image, uint8 (height, width, 3).

        With a `prevalence`, its probability is corrected as by `ServedModel.labels`.
        """
        loop = asyncio.get_running_loop()
        key = (model, prevalence, pixels.shape)
        group = self._groups.get(key)
        if group is None:
            delay_s = self._wait_s if self.n_running else 0
            group = self._groups[key] = _Group(loop.call_later(delay_s, self._start, key))
        answer: asyncio.Future[Output] = loop.create_future()
        group.images.append(pixels)
        group.answers.append(answer)
        if len(group.images) == self._max_images:
            group.timer.cancel()
            self._start(key)
        return answer

    def close(self) -> None:
        """Wait for the running batches."""
        self._pool.shutdown()

    def _start(self, key: _Key) -> None:
        (model, prevalence, _), group = key, self._groups.pop(key)
        self.n_running += 1
        self._on_batch(len(group.images))
        running = asyncio.get_running_loop().run_in_executor(self._pool, _scored, model, group.images, prevalence)
        running.add_done_callback(lambda done: self._deliver(group, done))

    def _deliver(self, group: _Group, done: "asyncio.Future[list[Output]]") -> None:
        self.n_running -= 1
        error = done.exception()
        for position, answer in enumerate(group.answers):
            if answer.done():  # its request was cancelled
                continue
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result()[position])


def _scored(model: ServedModel, images: list[Pixels], prevalence: float | None) -> list[Output]:
    outputs = model.outputs(np.stack(images))
    labels = model.labels(outputs, prevalence)
    numbers = (labels.probability.tolist(), outputs["probability"].tolist(), outputs["features"])
    return [Output(*row) for row in zip(*numbers, labels.label, labels.in_distribution, strict=True)]
