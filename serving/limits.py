"""Limits of requests: API key, size, time, number at once, decoded pixels. Plain ASGI, so that a refusal is cheap."""

import asyncio
import heapq
import itertools
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.params import Serve
from serving import problems
from serving.problems import Problem

Result = TypeVar("Result")
Check = Callable[[], None]  # raises WorkCancelledError once the request is cancelled

LIMITED_PREFIX = "/v1/"
MAX_FULL_BODIES = 8  # bodies of the largest size that all running requests together may send; above that: 429
RETRY_SOON = {"Retry-After": "1"}  # s


@dataclass(eq=False)
class _Running:
    """A request, and what has been received of it."""

    deadline: asyncio.Timeout
    n_bytes: int = 0
    is_complete: bool = False
    is_evicted: bool = False


class RequestLimits:
    """Refuses requests to the API without the key, too large or too many at once; ends those that take too long.

    Only complete requests count towards `max_requests`, so that slow senders keep nobody else from an answer. Where
    the bodies of all requests together are too large, the largest one that is still incomplete is refused.
    """

    def __init__(self, app: ASGIApp, settings: Serve, api_key: str | None) -> None:
        self._app = app
        self._settings = settings
        self._max_bytes = settings.max_body_mb * 1_000_000
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._running: list[_Running] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle or refuse a request."""
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED_PREFIX):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(headers)
            self._check_number()
        except Problem as problem:
            await problems.response(problem)(scope, receive, send)
            return
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        running = _Running(asyncio.timeout(self._settings.max_seconds), is_complete=not has_body)
        await self._answer(running, scope, receive, send)

    def _check(self, headers: Headers) -> None:
        given = headers.get("authorization", "").encode()
        if self._authorization is not None and not secrets.compare_digest(given, self._authorization):
            raise Problem(
                HTTPStatus.UNAUTHORIZED,
                "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()

    def _check_number(self) -> None:
        if sum(running.is_complete for running in self._running) >= self._settings.max_requests:
            raise _busy()

    async def _answer(self, running: _Running, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def receive_limited() -> Message:
            message = await receive()
            self._count(running, message)
            return message

        async def send_and_record(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            async with running.deadline:
                self._running.append(running)
                try:
                    await self._app(scope, receive_limited, send_and_record)
                finally:
                    self._running.remove(running)
        except TimeoutError:
            if has_started:  # the client stopped reading the answer
                return
            late = Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The answer took more than {self._settings.max_seconds:g} s. Send less at once, or try again later.",
                headers=RETRY_SOON,
            )
            await problems.response(_busy() if running.is_evicted else late)(scope, receive, send)

    def _count(self, running: _Running, message: Message) -> None:
        """Count what was received. Raises Problem if it is too much."""
        running.n_bytes += len(message.get("body", b""))
        if running.n_bytes > self._max_bytes:
            raise self._too_large()
        if sum(one.n_bytes for one in self._running if not one.is_evicted) > MAX_FULL_BODIES * self._max_bytes:
            waiting = [one for one in self._running if not one.is_complete and not one.is_evicted]
            largest = max(waiting, key=lambda one: one.n_bytes, default=running)
            if largest is running:
                raise _busy()
            largest.is_evicted = True
            largest.deadline.reschedule(0)
        if not running.is_complete and not message.get("more_body"):
            self._check_number()
            running.is_complete = True

    def _too_large(self) -> Problem:
        return Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The request is larger than {self._settings.max_body_mb} MB. Send fewer files at once.",
        )


def _busy() -> Problem:
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "The server has as many requests as it can handle. Send this one again later.",
        headers=RETRY_SOON,
    )


class PixelBudget:
    """Limits the decoded pixels in memory; requests that exceed it wait, those of the lowest rank first."""

    def __init__(self, n_pixels: int) -> None:
        self._n_free = n_pixels
        self._queue: list[tuple[int, int, int, asyncio.Future[None]]] = []  # a heap: rank, number, pixels, its turn
        self._numbers = itertools.count()  # equal ranks: first come, first served

    async def acquire(self, n_pixels: int, rank: int = 0) -> None:
        """Reserve `n_pixels`, at most the total budget, until `release`."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (rank, next(self._numbers), n_pixels, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # those behind it
            else:
                self.release(n_pixels)
            raise

    def release(self, n_pixels: int) -> None:
        """Return what was reserved."""
        self._n_free += n_pixels
        self._admit()

    def _admit(self) -> None:
        while self._queue and (self._queue[0][3].cancelled() or self._queue[0][2] <= self._n_free):
            *_, n_pixels, turn = heapq.heappop(self._queue)
            if not turn.cancelled():
                self._n_free -= n_pixels
                turn.set_result(None)


class WorkCancelledError(Exception):
    """Work was stopped because its request was cancelled."""


async def in_thread(work: Callable[[Check], Result], pool: ThreadPoolExecutor | None = None) -> Result:
    """Return the result of work in a thread; if the request is cancelled, wait until the work has stopped.

    So no work outlives its request, and its memory counts towards the limits until it is freed. `work` gets a function
    that raises WorkCancelledError once the request is cancelled: if it takes long, it should call that again and again.
    """
    has_begun, is_cancelled = threading.Event(), threading.Event()

    def check() -> None:
        if is_cancelled.is_set():
            raise WorkCancelledError

    def call() -> Result:
        has_begun.set()
        check()
        return work(check)

    running = asyncio.get_running_loop().run_in_executor(pool, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        is_cancelled.set()
        if has_begun.is_set():
            await asyncio.gather(running, return_exceptions=True)
        else:
            running.cancel()
        raise
