"""Limits of requests, tested without a server."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.params import load_params
from serving.limits import PixelBudget, RequestLimits, WorkCancelledError, in_thread
from serving.problems import Problem, response

SETTINGS = load_params(Path(__file__).parent.parent / "params.yaml").serve.model_copy(update={"max_body_mb": 1})


def test_what_fits_does_not_wait_and_what_does_not_waits_its_turn():
    async def main():
        budget, order = PixelBudget(10), []

        async def use(name, n_pixels, leave):
            async with budget.reserve(n_pixels):
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
            async with budget.reserve(n_pixels):
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
        async with asyncio.timeout(5), budget.reserve(10):
            pass
        return most

    assert asyncio.run(main()) <= 10


def test_a_request_cancelled_just_after_its_reservation_releases_the_pixels():
    async def main():
        budget = PixelBudget(10)

        async def use():
            async with budget.reserve(10):
                raise AssertionError("it was cancelled")

        async with budget.reserve(10):
            waiting = asyncio.create_task(use())
            await asyncio.sleep(0)
        waiting.cancel()  # after its turn has come, before it could run
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(5), budget.reserve(10):
            pass

    asyncio.run(main())


def test_a_failure_inside_the_block_releases_the_pixels():
    async def main():
        budget = PixelBudget(10)
        with pytest.raises(RuntimeError):
            async with budget.reserve(10):
                raise RuntimeError
        async with asyncio.timeout(5), budget.reserve(10):
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


async def cancelled_when(begun, work):
    """Start work, and cancel the request as soon as `begun` is set; in_thread then raises TimeoutError."""
    async with asyncio.timeout(None) as limit:
        asking = asyncio.create_task(in_thread(work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        limit.reschedule(0)
        await asking


def test_work_in_a_thread_has_stopped_when_its_request_is_answered_with_an_error():
    steps, begun = [], threading.Event()

    def work(is_cancelled):
        begun.set()
        assert is_cancelled.wait(20)
        steps.append("stopped")
        raise WorkCancelledError

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
    assert asyncio.run(in_thread(lambda is_cancelled: is_cancelled.is_set())) is False
