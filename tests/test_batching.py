"""Images of several requests are scored in one batch, each with its own output."""

import asyncio
import threading

import numpy as np
import pytest
from tiny_model import probability_of, write_tiny_model

from pipeline.inference.served import ServedModel
from serving.batching import Batcher

LEVELS = range(60, 200, 10)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return ServedModel.load(folder)


def plain(level, size=16):
    return np.full((size, size, 3), level, np.uint8)


class Slow:
    """A model whose batches wait for `may_end`."""

    def __init__(self, model):
        self._model = model
        self.may_end = threading.Event()

    def outputs(self, batch):
        assert self.may_end.wait(20)
        return self._model.outputs(batch)

    def labels(self, outputs, prevalence):
        return self._model.labels(outputs, prevalence)


def run(work, *, wait_ms=20, max_images=8):
    """Run `work(batcher)` in an event loop; return the sizes of the batches and the result."""
    sizes = []

    async def main():
        batcher = Batcher(wait_ms, max_images, sizes.append)
        try:
            return await work(batcher)
        finally:
            batcher.close()

    return sizes, asyncio.run(main())


def test_each_image_gets_its_own_answer(model):
    async def work(batcher):
        return await asyncio.gather(*(batcher.submit(model, plain(level)) for level in LEVELS))

    _, outputs = run(work)
    assert [output.probability for output in outputs] == pytest.approx(
        [probability_of(plain(level)) for level in LEVELS], abs=1e-5
    )
    assert outputs[0].features == pytest.approx([60 / 255] * 3, abs=1e-5)


def test_while_the_network_is_busy_images_of_one_size_go_together(model):
    slow = Slow(model)

    async def work(batcher):
        first = batcher.submit(slow, plain(60))
        await asyncio.sleep(0)
        while batcher.n_running == 0:
            await asyncio.sleep(0.001)
        others = [batcher.submit(slow, plain(level)) for level in (70, 80, 90)]
        another_size = batcher.submit(slow, plain(100, size=20))
        while batcher.n_running < 3:
            await asyncio.sleep(0.001)
        slow.may_end.set()
        await asyncio.gather(first, *others, another_size)

    sizes, _ = run(work)
    assert sorted(sizes) == [1, 1, 3]


def test_a_batch_that_is_full_does_not_wait(model):
    slow = Slow(model)

    async def work(batcher):
        answers = [batcher.submit(slow, plain(60))]
        while batcher.n_running == 0:
            await asyncio.sleep(0.001)
        answers += [batcher.submit(slow, plain(70)) for _ in range(4)]
        assert batcher.n_running == 3  # one, two, two: nothing was left to the timer
        slow.may_end.set()
        await asyncio.gather(*answers)

    sizes, _ = run(work, wait_ms=100, max_images=2)
    assert sizes == [1, 2, 2]


def test_two_models_never_share_a_batch(model):
    slow, other = Slow(model), Slow(model)

    async def work(batcher):
        answers = [batcher.submit(one, plain(60)) for one in (slow, other, slow, other)]
        slow.may_end.set()
        other.may_end.set()
        await asyncio.gather(*answers)

    sizes, _ = run(work)
    assert sizes == [2, 2]


def test_images_of_which_another_share_of_cracks_is_stated_are_batched_apart_and_corrected_each_for_its_own(model):
    async def work(batcher):
        return await asyncio.gather(*(batcher.submit(model, plain(128), share) for share in (0.1, None, 0.1)))

    sizes, (rare, unknown, rare_too) = run(work)
    assert sizes == [2, 1]
    assert [output.probability for output in (rare, unknown, rare_too)] == pytest.approx([0.1, 0.5, 0.1], abs=1e-5)
    assert [output.uncorrected for output in (rare, unknown)] == pytest.approx([0.5, 0.5], abs=1e-5)


def test_an_error_reaches_every_image_of_its_batch_and_no_other(model):
    class Broken:
        def outputs(self, batch):
            raise RuntimeError("broken")

    async def work(batcher):
        broken = [batcher.submit(Broken(), plain(60)) for _ in range(2)]
        good = batcher.submit(model, plain(60))
        return await asyncio.gather(*broken, good, return_exceptions=True)

    _, (one, other, good) = run(work)
    assert str(one) == str(other) == "broken"
    assert good.probability > 0.9


def test_a_cancelled_image_does_not_affect_the_others_of_its_batch(model):
    slow = Slow(model)

    async def work(batcher):
        cancelled, kept = batcher.submit(slow, plain(60)), batcher.submit(slow, plain(60))
        cancelled.cancel()
        slow.may_end.set()
        return await kept

    _, output = run(work)
    assert output.probability > 0.9
