"""Which names the API answers to, and from whose pages."""

import asyncio
import socket

import httpx
import pytest

from serving.allowed_sites import AllowedSites

PROXY = "cracks.example.org"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(method, host, **headers):
    async def main():
        transport = httpx.ASGITransport(AllowedSites(app, [PROXY]))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, "/v1/reviews", headers=headers)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "host",
    ["localhost:8000", "LOCALHOST", "127.0.0.1", "192.168.1.7:8000", "[::1]:8000", PROXY, socket.gethostname()],
)
def test_it_answers_under_its_names_and_under_any_address(host):
    assert ask("GET", host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "here"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_was_made_to_lead_here_is_refused_with_advice(host, method):
    answer = ask(method, host)
    assert answer.status_code == 421
    assert "add the name to the environment variable CRACKS_ALLOWED_HOSTS" in answer.json()["detail"]


FROM_OTHERS = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://["},
    {"origin": "http://localhost:8000", "sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FROM_OTHERS)
def test_a_page_of_another_site_sends_nothing(headers):
    answer = ask("POST", "localhost:8000", **headers)
    assert answer.status_code == 403
    origin = headers.get("origin", "http://localhost:8000")
    assert f"A page of another site ({origin}) sent this request" in answer.json()["detail"]
    assert ask("GET", "localhost:8000", **headers).status_code == 200  # a link leads here; no page can read it


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("localhost:8000", {}),  # a program
        ("localhost:8000", {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}),
        ("192.168.1.7:8000", {"origin": "http://192.168.1.7:8000"}),
        (PROXY, {"origin": f"https://{PROXY}"}),
        ("127.0.0.1:8000", {"origin": f"https://{PROXY}"}),  # a proxy that sets Host to where it leads
        ("localhost:8000", {"sec-fetch-site": "none"}),
    ],
)
def test_its_own_page_and_programs_are_answered(host, headers):
    assert ask("POST", host, **headers).status_code == 200
