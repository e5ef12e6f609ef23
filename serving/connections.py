"""Limits of connections: a deadline for requests and for reading answers, and how many there may be at once."""

import asyncio
import logging
import resource
import time
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

WAIT_S = 30.0  # for the headers of a request, from the connection or the last answer, and for an answer to be read on
MAX_CONNECTIONS = 512
GRACE_S = 0.1  # before those above it are closed, so that what they have sent is read first
ACCEPTED_AT_ONCE = 1024  # fewer would let others wait for a second
MAX_OPEN_FILES = 4096  # connections, uploads above 1 MB, the model, the log
LOG_S = 60.0  # between two lines of one wording


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, which alone waits for headers for ever.

    Above MAX_CONNECTIONS the one is closed that has been waiting longest for the rest of its request: who sends whole
    requests is served, however many others do not.
    """

    # Of this process, the one that has been waiting longest first.
    _incomplete: ClassVar[dict["GuardedProtocol", None]] = {}
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) == MAX_CONNECTIONS + 1:
            self.loop.call_later(GRACE_S, self._make_room)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadline."""
        super().connection_lost(exc)
        self._watch()

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
        """Wait for the client to read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._watch()

    def _make_room(self) -> None:
        n_over = len(self.connections) - MAX_CONNECTIONS
        if n_over > 0:
            log.warning("More than %d connections: the oldest without a request are closed", MAX_CONNECTIONS)
            for oldest in list(self._incomplete)[:n_over]:
                oldest.transport.abort()
            self.loop.call_later(GRACE_S, self._make_room)

    def _watch(self) -> None:
        """Start or end the deadline; the app has its own for a body, unless its answer is out already."""
        is_open = not self.transport.is_closing()
        is_incomplete = is_open and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if is_incomplete:
            self._incomplete.setdefault(self)
        else:
            self._incomplete.pop(self, None)
        is_answered = self.cycle is None or self.cycle.response_complete
        if (is_incomplete and is_answered) or (is_open and self.flow.write_paused):
            self._deadline = self._deadline or self.loop.call_later(WAIT_S, self.transport.abort)
        elif self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


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
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_OPEN_FILES)), hard))
    for name in ("asyncio", "uvicorn.error", __name__):
        logging.getLogger(name).addFilter(OncePerMinute())
