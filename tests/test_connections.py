"""Deadlines and the number of connections, against the server's protocol with a plain app."""

import contextlib
import logging
import socket
import threading
import time

import pytest
import uvicorn
from conftest import wait_until

from serving import connections
from serving.connections import GuardedProtocol, OncePerMinute

WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = WHOLE[:-2]
BODY_TO_COME = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345"
LARGE = 50_000_000


async def app(scope, receive, send):
    """Answer a GET at once, /large with many bytes, and a POST when its body is complete."""
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(LARGE if scope["path"] == "/large" else 2)})


@pytest.fixture
def connect():
    """Return a function that connects to the server, and sends some bytes."""
    config = uvicorn.Config(app, http=GuardedProtocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    with contextlib.ExitStack() as opened:

        def connect(content):
            client = opened.enter_context(socket.create_connection(listening.getsockname(), timeout=10))
            client.sendall(content)
            return client

        connect.n_open = lambda: len(server.server_state.connections)
        yield connect
    server.should_exit = True
    thread.join()


def is_closed(client):
    """Return whether the server closes a connection within 10 s."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(1000):
            pass
    return True


@pytest.mark.parametrize("begun", [b"", HALF, WHOLE + HALF])
def test_who_does_not_send_the_headers_in_time_is_disconnected(connect, monkeypatch, begun):
    monkeypatch.setattr(connections, "WAIT_S", 0.2)
    client = connect(begun)
    assert is_closed(client)


def test_a_client_that_sends_a_byte_now_and_then_has_no_more_time(connect, monkeypatch):
    monkeypatch.setattr(connections, "WAIT_S", 0.3)
    client = connect(b"GET / HTTP/1.1\r\n")
    started_s = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - started_s < 5:
            client.sendall(b"a")
            client.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                assert client.recv(10) == b""
                break
    assert time.monotonic() - started_s < 2


def test_a_body_may_take_longer_than_the_headers(connect, monkeypatch):
    monkeypatch.setattr(connections, "WAIT_S", 0.2)
    client = connect(BODY_TO_COME)
    client.settimeout(0.6)
    with pytest.raises(TimeoutError):
        client.recv(10)
    client.sendall(b"67890")
    assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_its_answer_is_disconnected(connect, monkeypatch):
    monkeypatch.setattr(connections, "WAIT_S", 0.2)
    client = connect(WHOLE.replace(b"/ ", b"/large "))
    assert client.recv(10) == b"HTTP/1.1 2"
    wait_until(lambda: connect.n_open() == 0, 5)
    n_received = 0
    with contextlib.suppress(ConnectionError):
        while part := client.recv(2**20):
            n_received += len(part)
    assert n_received < LARGE


@pytest.mark.parametrize("begun", [b"", HALF, BODY_TO_COME])
def test_whole_requests_are_answered_however_many_connections_wait(connect, monkeypatch, begun):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    waiting = []
    for _ in range(60):
        waiting.append(connect(begun))
        honest = connect(WHOLE)
        assert honest.recv(1000).startswith(b"HTTP/1.1 200")
    wait_until(lambda: connect.n_open() <= 20, 5)
    assert is_closed(waiting[0])


def test_connections_do_not_fill_the_log(caplog):
    log = logging.getLogger("serving.test")
    log.addFilter(OncePerMinute())
    for number in range(1000):
        log.warning("Connection %d", number)
        log.warning("Invalid request")
    assert caplog.messages == ["Connection 0", "Invalid request"]


def test_the_limits_are_within_the_files_that_a_process_may_open():
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        connections.prepare_process()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > connections.MAX_CONNECTIONS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for name in ("asyncio", "uvicorn.error", connections.__name__):
            logging.getLogger(name).filters.clear()
