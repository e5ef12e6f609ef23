"""What the API lets in: who, how much, how long, how many at once. Plain ASGI: a refusal costs next to nothing."""

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems
from serving.problems import Problem

Result = TypeVar("Result")

GUARDED = "/v1/"
FULL_BODIES = 8  # of the largest size, that all requests together may have sent; more are asked to come again
RETRY_AFTER_S = 1
SECURITY_HEADERS = {
    # The page needs its own files, pictures that the browser makes of the user's photos, and the API.
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
        """Answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Gate:
    """Lets a request to the API through if it has the key, fits, and finds a place; ends one that takes too long."""

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, max_body_mb: int, max_seconds: float, max_requests: int
    ) -> None:
        self._app = app
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._max_body_mb = max_body_mb
        self._max_seconds = max_seconds
        self._max_requests = max_requests
        self._n_requests = 0
        self._n_bytes = 0  # received for the requests that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
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
            raise _missing_key()
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body_mb * 1_000_000:
            raise self._too_large()
        if self._n_requests >= self._max_requests:
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
            if self._n_bytes > FULL_BODIES * self._max_body_mb * 1_000_000:
                raise _busy()
            if n_received > self._max_body_mb * 1_000_000:
                raise self._too_large()
            return message

        async def send_noted(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            async with asyncio.timeout(self._max_seconds):
                await self._app(scope, receive_limited, send_noted)
        except TimeoutError:
            if has_started:  # the client went away amid the answer
                return
            late = Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The answer took more than {self._max_seconds:g} s. Send less at once, or come again later.",
                retry_after_s=RETRY_AFTER_S,
            )
            await problems.response(late)(scope, receive, send)
        finally:
            self._n_bytes -= n_received

    def _too_large(self) -> Problem:
        return Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The request is larger than {self._max_body_mb} MB. Send fewer files at once.",
        )


def _busy() -> Problem:
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "The server has as many requests as it can answer. Send this one again later.",
        retry_after_s=RETRY_AFTER_S,
    )


def _missing_key() -> Problem:
    problem = Problem(
        HTTPStatus.UNAUTHORIZED, "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
    )
    problem.headers = {"WWW-Authenticate": "Bearer"}
    return problem


class PixelBudget:
    """How many pixels may lie decoded in memory at once; who does not fit waits, in order."""

    def __init__(self, n_pixels: int) -> None:
        self._n_free = n_pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, n_pixels: int) -> AsyncIterator[None]:
        """Hold `n_pixels`, at most the whole budget, inside the block."""
        await self._take(n_pixels)
        try:
            yield
        finally:
            self._give(n_pixels)

    async def _take(self, n_pixels: int) -> None:
        if not self._waiting and n_pixels <= self._n_free:
            self._n_free -= n_pixels
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((n_pixels, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(n_pixels)  # its turn came in the very moment in which it was given up
            raise

    def _give(self, n_pixels: int) -> None:
        self._n_free += n_pixels
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
            elif wanted <= self._n_free:
                self._waiting.popleft()
                self._n_free -= wanted
                turn.set_result(None)
            else:
                return


class GivenUpError(Exception):
    """Work was stopped, because the request that wanted it was ended."""


async def in_thread(work: Callable[[threading.Event], Result], pool: ThreadPoolExecutor | None = None) -> Result:
    """Run work in a thread; if the request is ended meanwhile, wait until the work has stopped.

    So nothing goes on behind a request, and what the work holds in memory is counted for as long as it holds it.

    Args:
        work: is told by the event that the request was ended; where it takes long, it should then raise GivenUpError.
        pool: of the thread; None takes asyncio's.
    """
    has_begun, is_given_up = threading.Event(), threading.Event()

    def call() -> Result:
        has_begun.set()
        if is_given_up.is_set():
            raise GivenUpError
        return work(is_given_up)

    running = asyncio.get_running_loop().run_in_executor(pool, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        is_given_up.set()
        if has_begun.is_set():
            await asyncio.gather(running, return_exceptions=True)
        else:
            running.cancel()
        raise
