"""Limits of requests: API key, size, time, number at once, decoded pixels. Plain ASGI, so that a refusal is cheap."""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.params import Serve
from serving import problems
from serving.problems import Problem

Result = TypeVar("Result")

LIMITED_PREFIX = "/v1/"
MAX_FULL_BODIES = 8  # bodies of the largest size that all running requests together may send; above that: 429
RETRY_SOON = {"Retry-After": "1"}  # s
SECURITY_HEADERS = {
    # The page needs its own files, images that the browser makes from the user's photos, and the API.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SecurityHeaders:
    """Adds the security headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RequestLimits:
    """Refuses requests to the API without the key, too large or too many at once; ends those that take too long."""

    def __init__(self, app: ASGIApp, settings: Serve, api_key: str | None) -> None:
        self._app = app
        self._settings = settings
        self._max_bytes = settings.max_body_mb * 1_000_000
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._n_requests = 0
        self._n_bytes = 0  # received by running requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle or refuse a request."""
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED_PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope))
        except Problem as problem:
            await problems.response(problem)(scope, receive, send)
            return
        self._n_requests += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._n_requests -= 1

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
        if self._n_requests >= self._settings.max_requests:
            raise _busy()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        n_received = 0
        has_started = False

        async def receive_limited() -> Message:
            nonlocal n_received
            message = await receive()
            n_bytes = len(message.get("body", b""))
            n_received += n_bytes
            self._n_bytes += n_bytes
            if self._n_bytes > MAX_FULL_BODIES * self._max_bytes:
                raise _busy()
            if n_received > self._max_bytes:
                raise self._too_large()
            return message

        async def send_and_record(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            async with asyncio.timeout(self._settings.max_seconds):
                await self._app(scope, receive_limited, send_and_record)
        except TimeoutError:
            if has_started:  # the client stopped reading the answer
                return
            late = Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The answer took more than {self._settings.max_seconds:g} s. Send less at once, or try again later.",
                headers=RETRY_SOON,
            )
            await problems.response(late)(scope, receive, send)
        finally:
            self._n_bytes -= n_received

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
    """Limits the decoded pixels in memory; requests that exceed it wait, first come, first served."""

    def __init__(self, n_pixels: int) -> None:
        self._n_free = n_pixels
        self._first_in_line = asyncio.Lock()  # which is fair
        self._released = asyncio.Event()

    @asynccontextmanager
    async def reserve(self, n_pixels: int) -> AsyncIterator[None]:
        """Reserve `n_pixels`, at most the total budget, inside the block."""
        async with self._first_in_line:
            while n_pixels > self._n_free:
                self._released.clear()
                await self._released.wait()
            self._n_free -= n_pixels
        try:
            yield
        finally:
            self._n_free += n_pixels
            self._released.set()


class WorkCancelledError(Exception):
    """Work was stopped because its request was cancelled."""


async def in_thread(work: Callable[[threading.Event], Result], pool: ThreadPoolExecutor | None = None) -> Result:
    """Return the result of work in a thread; if the request is cancelled, wait until the work has stopped.

    So no work outlives its request, and its memory counts towards the limits until it is freed. `work` gets an event
    that is set when the request is cancelled: if it takes long, it should check that and raise WorkCancelledError.
    """
    has_begun, is_cancelled = threading.Event(), threading.Event()

    def call() -> Result:
        has_begun.set()
        if is_cancelled.is_set():
            raise WorkCancelledError
        return work(is_cancelled)

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
