"""A PREFECT_API_URL at which no Prefect server answers."""

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from toy_project import diamond, toy_project

from flows.services import reaching_prefect
from pipeline.errors import CracksError, UnavailableError

NOWHERE = "http://127.0.0.1:9/api"
# One process for all, because the imports take seconds.
RUN_ALL = """
import runpy, sys
for line in sys.argv[1:]:
    sys.argv = line.split()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        print(sys.argv[0], "ended with", ended.code, file=sys.stderr)
"""
COMMANDS = (
    "flows.training",
    "flows.retraining",
    "flows.monitoring",
    "flows.promotion",
    "flows.gc --delete",
    "flows.local up",
    "flows.local status",
    "flows",
)


@pytest.mark.slow
def test_every_command_that_needs_prefect_says_so_in_a_sentence_and_does_nothing(tmp_path):
    project = toy_project(tmp_path / "project", diamond())
    finished = project.run(sys.executable, "-c", RUN_ALL, *COMMANDS, PREFECT_API_URL=NOWHERE)
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    sentence = f"error: The Prefect server {NOWHERE} does not answer: [Errno 111] Connection refused. Start it"
    assert finished.stderr.count(sentence) == len(COMMANDS)
    for command in COMMANDS:
        assert f"{command.split()[0]} ended with 4\n" in finished.stderr
    assert "cache" not in finished.stderr  # nothing was deleted
    assert not (project.root / ".prefect" / "local.json").exists()  # nothing was started


@pytest.fixture(params=["{}", "<!DOCTYPE html>", "true and more"])
def no_prefect(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the address of a server that answers everything with the same text."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param.encode())

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_answers_and_is_no_prefect_server_is_not_taken_for_one(no_prefect):
    with pytest.raises(UnavailableError, match="no Prefect server"), reaching_prefect(no_prefect):
        pytest.fail("the block was run")


def test_a_password_in_the_address_is_not_shown():
    with pytest.raises(UnavailableError) as raised, reaching_prefect("http://ada:secret@127.0.0.1:9/api"):
        pytest.fail("the block was run")
    assert "The Prefect server http://127.0.0.1:9/api does not answer" in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("address", ["localhost:4200/api", "htttp://localhost/api", "http://localhost:port/api"])
def test_what_is_no_address_is_a_mistake_and_no_outage(address):
    with pytest.raises(CracksError, match="correct or unset PREFECT_API_URL") as raised, reaching_prefect(address):
        pytest.fail("the block was run")
    assert raised.value.exit_code == CracksError.exit_code
