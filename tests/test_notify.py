import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.monitoring.notify import notify


@pytest.fixture(autouse=True)
def everything_is_logged(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def webhook():
    """A real receiver on loopback: its address for Apprise, and what it was sent."""
    received = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if self.path == "/here" else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_message_reaches_the_webhook_with_its_title_and_lines(webhook, monkeypatch, caplog):
    address, received = webhook
    monkeypatch.setenv("CRACKS_NOTIFY_URL", f"{address}/here")
    assert notify("Drift", ["brightness moved", "by < 3 & more"]) is True
    assert [(message["title"], message["message"]) for message in received] == [
        ("Drift", "brightness moved\nby < 3 & more")
    ]
    assert "Drift\nbrightness moved\nby < 3 & more" in caplog.messages


def test_an_address_that_fails_keeps_no_other_from_being_told_and_shows_no_secret(webhook, monkeypatch, caplog):
    address, received = webhook
    monkeypatch.setenv("CRACKS_NOTIFY_URL", f"nonsense://me:secret@there {address}/away {address}/here")
    assert notify("Drift", ["a line"]) is True
    assert len(received) == 2
    ours = [record.getMessage() for record in caplog.records if record.name == "pipeline.monitoring.notify"]
    assert [message[:30] for message in ours[1:]] == [
        f"Address {position} of CRACKS_NOTIFY_URL"[:30] for position in (1, 2)
    ]
    assert "secret" not in "".join(ours)


def test_what_no_address_took_reached_nobody(webhook, monkeypatch):
    address, received = webhook
    monkeypatch.setenv("CRACKS_NOTIFY_URL", f"nonsense://there {address}/away")
    assert notify("Drift", ["a line"]) is False
    assert len(received) == 1


def test_without_an_address_the_log_is_told(monkeypatch, caplog):
    monkeypatch.delenv("CRACKS_NOTIFY_URL", raising=False)
    assert notify("Nothing to do", []) is True
    assert "Nothing to do" in caplog.text
