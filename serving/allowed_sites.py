"""Refuses requests under a name that is not the server's, and those that a page of another site sends.

A browser sends them from inside the network, for a page from outside: by a form, or after the name of that page was
made to lead to this server (DNS rebinding). Requests for an IP address pass: no name leads astray there.
"""

import ipaddress
import socket
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import problems
from serving.problems import Problem

ALLOWED_HOSTS = "CRACKS_ALLOWED_HOSTS"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # which change nothing; another site cannot read their answers


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
        host = headers.get("host")  # no browser leaves it out
        name = _name_of(f"//{host}")
        if host is not None and name not in self._own_names and not _is_address(name):
            return Problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"This server does not know that it is called {name!r}. If it is, add the name to the environment "
                f"variable {ALLOWED_HOSTS} (names separated by blanks) and start the server again.",
            )
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        is_own = origin is None or origin.partition("//")[2] == host or _name_of(origin) in self._names
        if method not in SAFE_METHODS and (site not in (None, "same-origin", "none") or not is_own):
            return Problem(
                HTTPStatus.FORBIDDEN,
                f"A page of another site ({origin}) sent this request. Use the page of this server; if {origin} is "
                f"its address, behind a proxy, add its name to the environment variable {ALLOWED_HOSTS}.",
            )
        return None


def _name_of(url: str) -> str:
    """Return the host of a URL in lower case, "" if it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
