"""Limits of connections: deadlines for requests and for reading answers, and how many there may be at once."""

import asyncio
import logging
import resource
import time
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

REQUEST_S = 30.0  # for the headers of a request, from the connection or the last answer
READ_S = 30.0  # for a client to read a part of its answer
MAX_CONNECTIONS = 512
ACCEPTED_AT_ONCE = 1024  # before those above MAX_CONNECTIONS are closed; fewer would let others wait for a second
SPARE_FILES = 1100  # open files beside the connections: uploads above 1 MB, the model, the log
LOG_S = 60.0  # between two lines of one wording


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, which alone waits for headers for ever.

    Above MAX_CONNECTIONS the one is closed that has been waiting longest for the rest of its request: who sends whole
    requests is served, however many others do not.
    """

    # Of this process, the one that has been waiting longest first.
    _incomplete: ClassVar[dict["GuardedProtocol", None]] = {}
    _deadline: asyncio.TimerHandle | None = None
    _read_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadlines."""
        super().connection_lost(exc)
        self._incomplete.pop(self, None)
        for timer in (self._deadline, self._read_deadline):
            if timer is not None:
                timer.cancel()

    def handle_events(self) -> None:
        """Handle what was received."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._incomplete.pop(self, None)
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Give the client a time to read."""
        super().pause_writing()
        self._read_deadline = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """End that time."""
        super().resume_writing()
        if self._read_deadline is not None:
            self._read_deadline.cancel()

    def _watch(self) -> None:
        """Start or end the deadline; the app has its own for a body, unless its answer is out already."""
        is_incomplete = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()
        if is_incomplete:
            self._incomplete.setdefault(self)
        else:
            self._incomplete.pop(self, None)
        if is_incomplete and (self.cycle is None or self.cycle.response_complete):
            if self._deadline is None:
                self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)
        elif self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        log.warning(
            "More than %d connections: those with incomplete requests are closed, oldest first", MAX_CONNECTIONS
        )
        oldest = next(iter(self._incomplete))  # at least this one is there
        del self._incomplete[oldest]
        oldest.transport.abort()


class OncePerMinute(logging.Filter):
    """Lets one line of a wording pass a minute, where a client decides how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        now_s = time.monotonic()
        self._passed_s = {text: at_s for text, at_s in self._passed_s.items() if now_s - at_s < LOG_S}
        return self._passed_s.setdefault(str(record.msg), now_s) == now_s


def prepare_process() -> None:
    """Let this process open enough files for its connections, and rate-limit the logs about them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_CONNECTIONS + ACCEPTED_AT_ONCE + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    for name in ("asyncio", "uvicorn.error", __name__):
        logging.getLogger(name).addFilter(OncePerMinute())
