"""Limits of requests, tested without a server."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.params import load_params
from serving.limits import PixelBudget, RequestLimits, WorkCancelledError, in_thread
from serving.problems import Problem, response


@asynccontextmanager
async def reserved(budget, n_pixels, rank=0):
    await budget.acquire(n_pixels, rank)
    try:
        yield
    finally:
        budget.release(n_pixels)


SETTINGS = load_params(Path(__file__).parent.parent / "params.yaml").serve.model_copy(update={"max_body_mb": 1})


def test_what_fits_does_not_wait_and_what_does_not_waits_its_turn():
    async def main():
        budget, order = PixelBudget(10), []

        async def use(name, n_pixels, leave):
            async with reserved(budget, n_pixels):
                order.append(name)
                await leave.wait()

        first, rest = asyncio.Event(), asyncio.Event()
        tasks = [
            asyncio.create_task(use(*call))
            for call in (("a", 6, first), ("b", 3, rest), ("c", 6, rest), ("d", 1, rest))
        ]
        await asyncio.sleep(0)
        assert order == ["a", "b"]  # d would fit, and is still not let past c
        first.set()
        await asyncio.sleep(0.01)
        assert order == ["a", "b", "c", "d"]
        rest.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=30))
def test_the_budget_is_never_exceeded_and_always_released(uses):
    async def main():
        budget, n_used, most = PixelBudget(10), 0, 0

        async def use(n_pixels):
            nonlocal n_used, most
            async with reserved(budget, n_pixels):
                n_used += n_pixels
                most = max(most, n_used)
                try:
                    await asyncio.sleep(0)
                finally:
                    n_used -= n_pixels

        tasks = [asyncio.create_task(use(n_pixels)) for n_pixels, _ in uses]
        await asyncio.sleep(0)
        for task, (_, is_cancelled) in zip(tasks, uses, strict=True):
            if is_cancelled:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), reserved(budget, 10):
            pass
        return most

    assert asyncio.run(main()) <= 10


def test_a_request_cancelled_just_after_its_reservation_releases_the_pixels():
    async def main():
        budget = PixelBudget(10)

        async def use():
            async with reserved(budget, 10):
                raise AssertionError("it was cancelled")

        async with reserved(budget, 10):
            waiting = asyncio.create_task(use())
            await asyncio.sleep(0)
        waiting.cancel()  # after its turn has come, before it could run
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(5), reserved(budget, 10):
            pass

    asyncio.run(main())


def test_a_failure_inside_the_block_releases_the_pixels():
    async def main():
        budget = PixelBudget(10)
        with pytest.raises(RuntimeError):
            async with reserved(budget, 10):
                raise RuntimeError
        async with asyncio.timeout(5), reserved(budget, 10):
            pass

    asyncio.run(main())


def test_requests_whose_bodies_are_too_large_together_get_429():
    """Of nine simultaneous uploads of the largest size the ninth is refused; afterwards uploads are accepted again."""
    statuses = []

    async def main():
        leave = asyncio.Event()
        gate = RequestLimits(app, SETTINGS, api_key=None)

        async def upload():
            async def receive():
                return {"type": "http.request", "body": bytes(1_000_000), "more_body": False}

            async def send(message):
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await gate({"type": "http", "path": "/v1/predict", "headers": [], "leave": leave}, receive, send)

        tasks = [asyncio.create_task(upload()) for _ in range(9)]
        await asyncio.sleep(0)
        assert statuses == [429]
        leave.set()
        await asyncio.gather(*tasks)
        await upload()

    async def app(scope, receive, send):
        try:
            await receive()
        except Problem as problem:
            await response(problem)(scope, receive, send)
            return
        await scope["leave"].wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    asyncio.run(main())
    assert statuses == [429] + [200] * 9


def test_little_work_does_not_wait_for_much_work():
    async def main():
        budget, order = PixelBudget(10), []

        async def use(rank):
            async with reserved(budget, 10, rank):
                order.append(rank)

        async with reserved(budget, 10):
            tasks = [asyncio.create_task(use(rank)) for rank in (2, 1, 0, 1)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(main()) == [0, 1, 1, 2]


class Uploads:
    """The limits before an app that answers 200 once it has the body; `statuses` has the answers in their order."""

    def __init__(self, **changed):
        self.statuses = []
        self._gate = RequestLimits(self._app, SETTINGS.model_copy(update=changed), api_key=None)

    async def send(self, *parts, then=None):
        """Send a body in parts, each of them a number of bytes; wait for the event `then` before the last part."""
        sent = 0

        async def receive():
            nonlocal sent
            sent += 1
            if sent == len(parts) and then is not None:
                await then.wait()
            return {"type": "http.request", "body": bytes(parts[sent - 1]), "more_body": sent < len(parts)}

        async def answer(message):
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])

        headers = [(b"content-length", b"1")]
        await self._gate({"type": "http", "path": "/v1/predict", "headers": headers}, receive, answer)

    async def _app(self, scope, receive, send):
        try:
            while (await receive())["more_body"]:
                await asyncio.sleep(0)
        except Problem as problem:
            await response(problem)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})


def test_slow_senders_keep_no_other_request_from_its_answer():
    async def main():
        uploads, never = Uploads(max_requests=2, max_seconds=0.3), asyncio.Event()
        slow = [asyncio.create_task(uploads.send(1, 1, then=never)) for _ in range(50)]
        await asyncio.sleep(0)
        await uploads.send(1)
        assert uploads.statuses == [200]
        await asyncio.gather(*slow)
        return uploads.statuses

    assert asyncio.run(main()) == [200] + [503] * 50


def test_large_bodies_that_never_end_are_refused_before_smaller_ones():
    async def main():
        uploads, never = Uploads(max_seconds=5), asyncio.Event()
        slow = [asyncio.create_task(uploads.send(999_000, 1, then=never)) for _ in range(8)]
        await asyncio.sleep(0.01)
        await uploads.send(100_000, 1)
        await asyncio.sleep(0.01)
        assert sorted(uploads.statuses) == [200, 429]
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(main())


async def cancelled_when(begun, work):
    """Start work, and cancel the request as soon as `begun` is set; in_thread then raises TimeoutError."""
    async with asyncio.timeout(None) as limit:
        asking = asyncio.create_task(in_thread(work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        limit.reschedule(0)
        await asking


def test_work_in_a_thread_has_stopped_when_its_request_is_answered_with_an_error():
    steps, begun, ended = [], threading.Event(), threading.Event()

    def work(check):
        begun.set()
        try:
            while not ended.wait(0.001):
                check()
        except WorkCancelledError:
            steps.append("stopped")
            raise

    async def main():
        with pytest.raises(TimeoutError):
            await cancelled_when(begun, work)
        steps.append("answered")

    asyncio.run(main())
    assert steps == ["stopped", "answered"]


def test_queued_work_of_a_cancelled_request_never_starts():
    leave, is_busy, begun = threading.Event(), threading.Event(), []

    def hold(_):
        is_busy.set()
        return leave.wait(20)

    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        busy = asyncio.create_task(in_thread(hold))
        while not is_busy.is_set():
            await asyncio.sleep(0.001)
        with pytest.raises(TimeoutError):
            await cancelled_when(is_busy, begun.append)
        leave.set()
        return await busy

    assert asyncio.run(main()) is True
    assert begun == []


def test_work_that_is_done_in_time_gives_its_result():
    assert asyncio.run(in_thread(lambda check: check() or "done")) == "done"
