"""One alert is sent when the heartbeat stops, and one message when it resumes."""

import json
import logging
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from api_server import Server
from conftest import wait_until
from tiny_model import write_tiny_model
from webhook import webhook

from pipeline.monitoring import heartbeat
from pipeline.monitoring.heartbeat import LATE_S, HeartbeatWatch, end_heartbeat, heartbeat_file, renew_heartbeat

STOPPED, RUNNING = "Concrete cracks: the schedules have stopped", "Concrete cracks: the schedules are running again"
LONG_AGO_S = 1_000_000_000.0  # 2001-09-09 01:46:40 UTC
# The server, whose watch looks so often that a test need not wait for two minutes.
HASTY = """
from pipeline.monitoring import heartbeat
heartbeat.INTERVAL_S, heartbeat.LATE_S = 0.05, 0.5
from pipeline.stage import run_main
from serving.__main__ import main
run_main(main)
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def told(monkeypatch):
    """The messages that were sent; while `reached` is False they reach nobody."""
    told = SimpleNamespace(titles=[], lines=[], reached=True)

    def notify(title, lines):
        told.titles.append(title)
        told.lines.append(lines)
        return told.reached

    monkeypatch.setattr(heartbeat, "notify", notify)
    return told


def check(watch, *times_s):
    for now_s in times_s:
        watch.check(now_s)


def test_one_alert_names_the_last_heartbeat_and_what_to_do(told):
    renew_heartbeat(LONG_AGO_S)
    watch = HeartbeatWatch()
    check(watch, 1000, 1000 + LATE_S - 1)
    assert told.titles == []
    check(watch, 1000 + LATE_S, 1000 + 2 * LATE_S, 1000 + 4 * LATE_S, 1e9)
    assert told.titles == [STOPPED]
    assert "2001-09-09 01:46 UTC" in told.lines[0][0]
    assert "make up" in told.lines[0][-1]


def test_no_alert_is_sent_while_the_heartbeat_is_renewed(told):
    watch = HeartbeatWatch()
    for now_s in range(0, 10 * LATE_S, LATE_S - 1):
        renew_heartbeat(LONG_AGO_S + now_s)
        watch.check(now_s)
    assert told.titles == []


def test_schedules_that_were_not_started_or_were_stopped_on_purpose_cause_no_alert(told):
    watch = HeartbeatWatch()
    check(watch, 0, 10 * LATE_S)
    renew_heartbeat(LONG_AGO_S)
    check(watch, 11 * LATE_S)
    end_heartbeat()
    end_heartbeat()  # nor is it an error that they were ended before
    check(watch, 20 * LATE_S)
    assert told.titles == []
    assert list(heartbeat_file().parent.iterdir()) == []


def test_one_message_is_sent_on_recovery_and_a_new_alert_on_the_next_failure(told):
    watch = HeartbeatWatch()
    renew_heartbeat(LONG_AGO_S)
    check(watch, 0, 200)
    renew_heartbeat(LONG_AGO_S + 300)
    check(watch, 300)
    renew_heartbeat(LONG_AGO_S + 330)
    check(watch, 330)
    assert told.titles == [STOPPED, RUNNING]
    assert "2001-09-09 01:51 UTC" in told.lines[1][0]
    check(watch, 330 + LATE_S)
    assert told.titles == [STOPPED, RUNNING, STOPPED]


def test_a_restarted_watch_repeats_no_alert_and_reports_recovery(told):
    renew_heartbeat(LONG_AGO_S)
    check(HeartbeatWatch(), 0, 200)
    again = HeartbeatWatch()
    check(again, 0, 1000)
    assert told.titles == [STOPPED]
    renew_heartbeat(LONG_AGO_S + 2000)
    check(HeartbeatWatch(), 0)
    assert told.titles == [STOPPED, RUNNING]


def test_a_heartbeat_that_is_old_when_the_watch_starts_gets_the_full_time(told):
    """As after the machine was switched on, when the API is up before the schedules."""
    renew_heartbeat(LONG_AGO_S)
    watch = HeartbeatWatch()
    check(watch, 5000)
    renew_heartbeat()
    check(watch, 5000 + LATE_S)
    assert told.titles == []


def test_an_undelivered_alert_is_sent_again_after_twice_as_long_each_time(told):
    told.reached = False
    watch = HeartbeatWatch()
    renew_heartbeat(LONG_AGO_S)
    tries_s = []
    for now_s in range(0, 16 * LATE_S, 30):
        n_tries = len(told.titles)
        watch.check(now_s)
        tries_s += [now_s] * (len(told.titles) - n_tries)
    assert tries_s == [LATE_S, 2 * LATE_S, 4 * LATE_S, 8 * LATE_S]
    told.reached = True
    check(watch, 16 * LATE_S, 32 * LATE_S, 64 * LATE_S)
    assert told.titles == [STOPPED] * 5


def test_an_undelivered_recovery_message_is_sent_again(told):
    watch = HeartbeatWatch()
    renew_heartbeat(LONG_AGO_S)
    check(watch, 0, 200)
    told.reached = False
    renew_heartbeat(LONG_AGO_S + 300)
    check(watch, 300)
    told.reached = True
    check(watch, 330, 360)
    assert told.titles == [STOPPED, RUNNING, RUNNING]


def test_only_one_of_several_simultaneous_watches_sends_the_alert(told, monkeypatch):
    renew_heartbeat(LONG_AGO_S)
    watches = [HeartbeatWatch() for _ in range(8)]
    for watch in watches:
        watch.check(0)
    notify = heartbeat.notify
    monkeypatch.setattr(heartbeat, "notify", lambda *message: time.sleep(0.05) or notify(*message))
    for expected in ([STOPPED], [STOPPED, RUNNING]):
        threads = [threading.Thread(target=watch.check, args=(200,)) for watch in watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told.titles == expected
        renew_heartbeat(LONG_AGO_S + 200)


def test_an_exception_does_not_end_the_watch(monkeypatch, caplog):
    """For example a damaged heartbeat file."""
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0)
    heartbeat_file().parent.mkdir()
    heartbeat_file().write_text("{")
    stopping = threading.Event()
    thread = threading.Thread(target=heartbeat.watch_heartbeat, args=(stopping,))
    thread.start()
    try:
        wait_until(lambda: caplog.text.count("cannot be checked") > 2)
    finally:
        stopping.set()
        thread.join()
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


@contextmanager
def hasty_servers(folder: Path, address: str, n: int):
    """Yield n servers of one folder, which send messages to an address."""
    write_tiny_model(folder / "starter")
    servers = [Server(folder / "project", starter=folder / "starter") for _ in range(n)]
    try:
        for number, server in enumerate(servers):
            server._log = folder / f"{number}.log"
            server.command[1:3] = ["-c", HASTY]
            server.command[server.command.index("kept")] = f"kept-{number}"
            server.env |= {"CRACKS_NOTIFY_URL": address, "DVC_ROOT": str(folder)}
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.mark.slow
def test_two_servers_send_each_alert_and_recovery_message_once(tmp_path):
    titles, told = [], heartbeat_file().with_name("heartbeat-told.json")

    def wait_for(title):
        """Wait for the next message, while both servers look again and again."""
        titles.append(title)
        wait_until(lambda: len(messages) >= len(titles), 30)
        assert [message["title"] for message in messages[: len(titles)]] == titles

    renew_heartbeat(LONG_AGO_S)
    with webhook() as (address, messages), hasty_servers(tmp_path, address, 2) as (one, other):
        wait_for(STOPPED)
        wait_until(told.exists)  # killed before that, it would tell again
        assert json.loads(told.read_text()) == LONG_AGO_S
        one.kill()
        one.start()
        renew_heartbeat()
        wait_for(RUNNING)
        wait_for(STOPPED)
        end_heartbeat()
        for server in (one, other):
            server.wait_until_ready()
            assert "Traceback" not in server.log()
        assert len(messages) == len(titles)


@pytest.mark.slow
def test_an_address_that_hangs_holds_up_neither_an_answer_nor_the_end_of_the_server(tmp_path):
    renew_heartbeat(LONG_AGO_S)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"json://127.0.0.1:{silent.getsockname()[1]}/?rto=60"
        with hasty_servers(tmp_path, address, 1) as (server,):
            server.wait_until_ready()
            silent.settimeout(30)
            connection, _ = silent.accept()  # the message is under way, and will not arrive
            with connection, server.client() as client:
                assert client.get("/healthz").elapsed.total_seconds() < 2
                began_s = time.monotonic()
                server.process.terminate()
                assert (
                    server.process.wait(timeout=30) == 128 + signal.SIGTERM
                )  # uvicorn ends, then lets the signal through
                assert time.monotonic() - began_s < 10
