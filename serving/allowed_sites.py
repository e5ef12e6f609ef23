"""Refuses requests under a name that is not the server's, and those that a page of another site sends.

A browser sends them from inside the network, for a page from outside: by a form, or after the name of that page was
made to lead to this server (DNS rebinding). Requests for an IP address pass: DNS has no part in them.
"""

import re
import socket
from collections.abc import Iterable
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import problems
from serving.problems import Problem

ALLOWED_HOSTS = "CRACKS_ALLOWED_HOSTS"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # which change nothing; another site cannot read their answers
OWN_PAGES = ("same-origin", "none")  # values of Sec-Fetch-Site
PORT = re.compile(r":\d+$")
ADDRESS = re.compile(r"[\d.]+|\[[\da-f:.]+\]")


class AllowedSites:
    """Refuses what does not come from the server's own page or from a program; plain ASGI."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        """Set names of the server beside those of this machine, such as those of a proxy."""
        self._app = app
        self._names = {name.lower() for name in names}
        self._own_names = self._names | {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (problem := self._problem_with(scope["method"], Headers(scope=scope))):
            await problems.response(problem)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem_with(self, method: str, headers: Headers) -> Problem | None:
        host = headers.get("host", "localhost").lower()  # no browser leaves it out
        name = PORT.sub("", host)
        if name not in self._own_names and not ADDRESS.fullmatch(name):
            return Problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"This server does not know that it is called {name!r}. If it is, add the name to the environment "
                f"variable {ALLOWED_HOSTS} (names separated by spaces) and start the server again.",
            )
        origin = headers.get("origin", f"http://{host}").lower()
        origin_host = origin.partition("//")[2]
        is_own = origin_host == host or PORT.sub("", origin_host) in self._names
        if method not in SAFE_METHODS and not (is_own and headers.get("sec-fetch-site", "none") in OWN_PAGES):
            return Problem(
                HTTPStatus.FORBIDDEN,
                f"A page of another site ({origin}) sent this request. Use the page of this server; if {origin} is "
                f"its address, behind a proxy, add its name to the environment variable {ALLOWED_HOSTS}.",
            )
        return None
