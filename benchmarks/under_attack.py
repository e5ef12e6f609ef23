"""Measures what honest clients of the API notice of attacks on it.

    python -m benchmarks.under_attack

Registers a classifier as `python -m benchmarks.serving` does. Under each attack, eight clients send an image of 227 px
every 0.1 s, each on a connection of its own, and one asks /healthz as often. Prints for each attack the requests that
were answered with 200 of those sent, the 50th and 99th percentile of the seconds until then, the longest time until
/healthz answered, the most resident memory of the API, and the length of its log. Mere numbers of requests are no
attack here: a proxy limits them.
"""

import argparse
import asyncio
import io
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.serving import api_command, api_request, free_port, register_model, running
from pipeline.registry.tracking import SETTINGS

N_CLIENTS = 8
PAUSE_S = 0.1
GIVE_UP_S = 30.0  # a request without an answer until then counts as long
N_SCANS = 200_000
MULTIPART = "multipart/form-data; boundary=b"
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"

Attack = Callable[[int], Coroutine[Any, Any, None]]  # of the server on a port, until it is cancelled


def encoded(pixels: Image.Image, file_format: str, **settings: object) -> bytes:
    """Return an image as a file."""
    content = io.BytesIO()
    pixels.save(content, file_format, **settings)
    return content.getvalue()


def repeated_scan() -> bytes:
    """Return a progressive JPEG of 4 megapixels whose last scan occurs 200,000 times."""
    content = encoded(Image.new("L", (2000, 2000), 90), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * N_SCANS + content[-2:]


def post(path: str, field: str, contents: list[bytes]) -> bytes:
    """Return a whole request with files."""
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{n}"\r\n\r\n'.encode() + content + b"\r\n"
        for n, content in enumerate(contents)
    ]
    body = b"".join(parts) + b"--b--\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART}\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(port: int, request: bytes) -> bytes:
    """Send a request on a new connection; return the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


def repeats(request: Callable[[], bytes], n_clients: int) -> Attack:
    """Return the attack by clients that send one request again and again."""

    async def attack(port: int) -> None:
        content = request()

        async def client() -> None:
            while True:
                try:
                    await ask(port, content)
                except OSError:
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(client() for _ in range(n_clients)))

    return attack


def holds(n_connections: int, begin: Callable[[], bytes], each_second: bytes = b"") -> Attack:
    """Return the attack by connections that send `begin()`, then more bytes each second; closed, they start again."""

    async def attack(port: int) -> None:
        begun = begin()

        async def client() -> None:
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(begun)
                    while not reader.at_eof():
                        await asyncio.sleep(1)
                        writer.write(each_second)
                        await writer.drain()
                    writer.close()
                except OSError:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(client() for _ in range(n_connections)))

    return attack


def body_head(n_bytes: int) -> bytes:
    """Return the headers of a request with a body of so many bytes, and the beginning of its first file."""
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    return HEAD + f"Content-Type: {MULTIPART}\r\nContent-Length: {n_bytes}\r\n\r\n".encode() + part


def noise(side_px: int) -> Image.Image:
    """Return a picture that takes long to decode."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3), np.uint8))


def large_png() -> bytes:
    """Return a PNG of 88 megapixels in few bytes."""
    return encoded(Image.new("L", (9400, 9400)), "PNG")


def transparent_png() -> bytes:
    """Return a PNG of 88 megapixels in few bytes, half of them transparent."""
    picture = Image.new("LA", (9400, 9400))
    picture.paste((255, 255), (0, 0, 9400, 4700))
    return encoded(picture, "PNG")


async def no_attack(_: int) -> None:
    """Leave the server alone."""


ATTACKS: dict[str, Attack] = {
    "none": no_attack,
    "64 PNGs of 9400 px in a request": repeats(lambda: post("/v1/predict", "files", [large_png()] * 64), 4),
    "photos of 88 megapixels": repeats(lambda: post("/v1/map", "file", [large_png()]), 4),
    "transparent photos of 88 megapixels": repeats(lambda: post("/v1/map", "file", [transparent_png()]), 4),
    "JPEG with 200,000 scans": repeats(lambda: post("/v1/predict", "files", [repeated_scan()]), 4),
    "64 images of 4 megapixels in a request": repeats(
        lambda: post("/v1/predict", "files", [encoded(noise(2000), "JPEG", quality=30)] * 64), 8
    ),
    "64 overlays in a request": repeats(
        lambda: post("/v1/predict?explain=true", "files", [encoded(noise(500), "JPEG")] * 64), 8
    ),
    "1100 half-sent requests": holds(1100, lambda: HEAD),
    "200 connections, a byte of headers a second": holds(200, lambda: HEAD, b"a"),
    "200 slow bodies": holds(200, lambda: body_head(1_000_000), b"a"),
    "12 bodies that stop at 90 of 99 MB": holds(12, lambda: body_head(99_000_000) + bytes(90_000_000)),
    "malformed requests": repeats(lambda: b"\x00\r\n\r\n", 8),
}


def run_attack(name: str, port: int) -> None:
    """Attack until the process is ended."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(ATTACKS[name](port))


@dataclass
class Seen:
    """What honest clients saw."""

    seconds: list[float] = field(default_factory=list)
    n_sent: int = 0

    async def keep_asking(self, port: int, request: bytes, until_s: float) -> None:
        """Send a request every PAUSE_S until a time; only answers with 200 count as answered."""
        await asyncio.sleep(random.uniform(0, PAUSE_S))  # noqa: S311
        while time.monotonic() < until_s:
            started_s = time.monotonic()
            self.n_sent += 1
            try:
                answer = await asyncio.wait_for(ask(port, request), GIVE_UP_S)
            except (OSError, TimeoutError):
                answer = b""
            if answer.startswith(b"HTTP/1.1 200"):
                self.seconds.append(time.monotonic() - started_s)
            await asyncio.sleep(PAUSE_S)


async def measure(port: int, server: psutil.Process, images: list[bytes], seconds: float) -> tuple[Seen, Seen, int]:
    """Return what clients of /v1/predict and of /healthz see, and the most bytes of memory."""
    predict, health, until_s, most = Seen(), Seen(), time.monotonic() + seconds, 0
    closing = b"\r\nConnection: close\r\n\r\n"
    asking = [
        predict.keep_asking(port, api_request(image).replace(b"\r\n\r\n", closing, 1), until_s)
        for image in images[:N_CLIENTS]
    ]
    asking.append(health.keep_asking(port, b"GET /healthz HTTP/1.1\r\nHost: localhost" + closing, until_s))
    tasks = asyncio.gather(*asking)
    while not tasks.done():
        most = max(most, server.memory_info().rss)
        await asyncio.sleep(0.05)
    return predict, health, most


def row_of(name: str, scratch: Path, images: list[bytes], env: dict[str, str], seconds: float) -> str:
    """Return a row of the table: start the API, attack it, and measure."""
    port = free_port()
    log = scratch / "server.log"
    with running(api_command(scratch, port), port, "/readyz", env, log) as server:
        attacker = multiprocessing.get_context("spawn").Process(target=run_attack, args=(name, port))
        attacker.start()
        try:
            time.sleep(8)  # until the attack has made its files, and is under way
            predict, health, most = asyncio.run(measure(port, server, images, seconds))
        finally:
            attacker.kill()
            attacker.join()
    p50, p99 = np.percentile(predict.seconds or [np.inf], [50, 99])
    slowest = max(health.seconds, default=np.inf)
    answered = f"{len(predict.seconds)} of {predict.n_sent} | {p50:.2f} | {p99:.2f}"
    health_answered = f"{len(health.seconds)} of {health.n_sent} | {slowest:.2f}"
    return f"| {name} | {answered} | {health_answered} | {most / 1e6:.0f} | {log.stat().st_size / 1e3:.1f} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for each attack")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="attacks to measure")
    args = parser.parse_args()
    os.environ |= SETTINGS
    images = [encoded(noise(227), "JPEG") for _ in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        env = {"MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db"}
        register_model(env["MLFLOW_TRACKING_URI"], images)
        columns = ("attack", "predict", "p50 s", "p99 s", "healthz", "longest s", "memory MB", "log kB")
        print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
        for name in args.only:
            print(row_of(name, scratch, images, env, args.seconds), flush=True)


if __name__ == "__main__":
    main()
