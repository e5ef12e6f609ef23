"""Bound each request to a tracking server in time, and check that its answer is one of MLflow.

The timeout of MLflow and `requests` holds for each read: a server that sends a byte a second never exceeds it.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import requests
from mlflow.utils import request_utils

Result = TypeVar("Result")

REQUEST_S = 120  # with its retries
TRANSFER_S = 1800  # of a file

# What an answer must have, by the end of the path.
PARTS = {
    ("GET", "experiments/get-by-name"): ("experiment", "experiment_id"),
    ("POST", "experiments/create"): ("experiment_id",),
    ("GET", "runs/get"): ("run", "info", "run_id"),
    ("POST", "runs/create"): ("run", "info", "run_id"),
    ("GET", "registered-models/get"): ("registered_model", "name"),
    ("GET", "registered-models/alias"): ("model_version", "version"),
    ("GET", "model-versions/get"): ("model_version", "version"),
    ("POST", "model-versions/create"): ("model_version", "version"),
}


def within(limit_s: float, work: Callable[[], Result]) -> Result:
    """Return what `work` returns or raises; raise requests.Timeout if it takes longer. It then goes on unnoticed."""
    ended: Future[Result] = Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # as a daemon it does not keep the process alive
    try:
        return ended.result(limit_s)
    except TimeoutError:
        raise requests.Timeout(f"no complete answer within {limit_s:g} s") from None


class BoundedAdapter(request_utils.TCPKeepAliveHTTPAdapter):
    """Sends a request of MLflow and reads its answer within a time."""

    def send(  # type: ignore[override]  # MLflow's requests name all settings
        self, request: requests.PreparedRequest, stream: bool = False, **settings: Any
    ) -> requests.Response:
        """Return the answer. Raises requests.Timeout, or ValueError if it lacks what MLflow would send."""

        def answer() -> requests.Response:
            response = super(BoundedAdapter, self).send(request, stream=stream, **settings)
            if not stream:
                _ = response.content  # read here, not after the time is over
            return response

        is_file = not isinstance(request.body, str | bytes | None)
        response = within(TRANSFER_S if is_file else REQUEST_S, answer)
        if not stream and response.ok:
            check_answer(str(request.method), request.path_url, response.content)
        return response


def check_answer(method: str, path: str, content: bytes) -> None:
    """Raise ValueError if an answer lacks what MLflow always sends, such as `{}` of something else."""
    endpoint = "/".join(path.partition("?")[0].rsplit("/", 2)[1:])
    parts = PARTS.get((method, endpoint))
    if parts is None:
        return
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    if not value:
        raise ValueError(f"{content[:80]!r} is no answer of MLflow to {endpoint}")


def install() -> None:
    """Let MLflow use the adapter for the sessions that it opens from now on; it has no setting for that."""
    vars(request_utils)["TCPKeepAliveHTTPAdapter"] = BoundedAdapter
