"""Compares the API with `mlflow models serve`: same registered model, images and machine, one server at a time.

    python -m benchmarks.serving --metu metu-subset.zip

Registers a probe-like classifier (EfficientNet-Lite0 at 128 px) in a temporary store. Then 1, 8 and 32 clients send
requests of one image to each server, the next as soon as the last is answered: the JPEG file to the API, the same in
base64 as JSON to MLflow. Prints requests per second, latencies, and the largest difference of the answers. With
--memory it prints the resident memory of the API over 10,000 requests instead.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml

from pipeline.data.images import decode
from pipeline.registry.tracking import SETTINGS

CLIENTS = (1, 8, 32)
N_IMAGES = 64
N_COMPARED = 16  # images whose answers are compared
N_MEMORY_REQUESTS = 10_000
START_S = 120
NAME = "cracks"


@dataclass(frozen=True)
class Speed:
    """Requests per second and percentiles of the latency in seconds."""

    requests_per_s: float
    seconds: dict[int, float]

    def __str__(self) -> str:
        """Return a part of a row of the table."""
        times = " | ".join(f"{1000 * self.seconds[share]:.0f}" for share in (50, 95, 99))
        return f"{self.requests_per_s:.1f} | {times}"


def read_images(archive: Path) -> list[bytes]:
    """Return the bytes of JPEG files, half of them cracked."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
        return [opened.read(name) for name in names[:: len(names) // N_IMAGES][:N_IMAGES]]


def register_model(uri: str, images: list[bytes]) -> None:
    """Register a classifier with random weights in its head, as `make run` would register a probe."""
    import mlflow

    from pipeline.inference.out_of_distribution import DETECTOR_FILE, detector_projection, fit
    from pipeline.inference.served import ServedModel
    from pipeline.models.calibration import Calibration, Platt, calibrated
    from pipeline.models.classifier import Classifier
    from pipeline.models.decision import Decision
    from pipeline.models.linear_head import LinearHead, linear_classifier
    from pipeline.models.network import build_embedder
    from pipeline.params import Backbone
    from pipeline.registry.registration import log_model, write_checked_served

    feature_layers = ("block_11_expand", "block_14_expand", "head_conv")
    backbone = Backbone(architecture="efficientnet-lite0", image_size_px=128, feature_layers=feature_layers)
    n_features = build_embedder(backbone).output["features"].shape[-1]
    kernel = np.random.default_rng(0).normal(0, 0.05, n_features).astype(np.float32)
    model = calibrated(linear_classifier(backbone, LinearHead(kernel, 0.0)), Calibration((Platt(1.0, 0.0),)))
    classifier = Classifier(model, Decision(0.5, 0.4, 0.6))
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    artifacts = Path(uri.removeprefix("sqlite:///")).with_name("artifacts").as_uri()
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment(NAME, artifact_location=artifacts))
    with tempfile.TemporaryDirectory() as scratch:
        served, keras_file = Path(scratch) / "served", Path(scratch) / "model.keras"
        served.mkdir()
        model.save(keras_file)
        pixels = [decode(content) for content in images]
        write_checked_served(classifier, pixels[:4], served)
        seen = detector_projection(ServedModel.load(served).outputs(np.stack(pixels))["features"])
        fit(seen, seen, 0.05, ()).save(served / DETECTOR_FILE)
        registered = mlflow.register_model(log_model(keras_file, served, run.info.run_id, NAME), NAME)
    client.set_registered_model_alias(NAME, "production", registered.version)


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(
    command: list[str], port: int, path: str, env: dict[str, str], log: Path = Path(os.devnull)
) -> Iterator[psutil.Process]:
    """Run a server inside the block, which begins when `path` answers; it writes into `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | env, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}{path}", process)
        yield psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            sys.exit(f"The server of {url} ended.")
        try:
            urllib.request.urlopen(url, timeout=5)  # noqa: S310 - of this machine
        except OSError:
            time.sleep(0.1)
        else:
            return
    sys.exit(f"{url} does not answer.")


def api_request(content: bytes) -> bytes:
    """Return a whole HTTP request for the API."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    return _post("/v1/predict", "multipart/form-data; boundary=b", head + content + b"\r\n--b--\r\n")


def mlflow_request(content: bytes) -> bytes:
    """Return a whole HTTP request for `mlflow models serve`."""
    body = json.dumps({"inputs": [base64.b64encode(content).decode()]}).encode()
    return _post("/invocations", "application/json", body)


def _post(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    body = await reader.readexactly(int(length.split(b":")[1]))
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(f"A request failed: {head.decode()}{body.decode()}")
    return body


async def _load(port: int, requests: Sequence[bytes], n_clients: int, seconds: float, n_most: int) -> list[float]:
    took_s: list[float] = []
    until_s = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        while time.perf_counter() < until_s and len(took_s) < n_most:
            started_s = time.perf_counter()
            await _ask(reader, writer, requests[(number + len(took_s)) % len(requests)])
            took_s.append(time.perf_counter() - started_s)
        writer.close()

    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return took_s


def measure(port: int, requests: Sequence[bytes], n_clients: int, seconds: float) -> Speed:
    """Return the speed of a server with `n_clients`; the first second is not counted."""
    asyncio.run(_load(port, requests, n_clients, 1.0, sys.maxsize))
    started_s = time.perf_counter()
    took_s = asyncio.run(_load(port, requests, n_clients, seconds, sys.maxsize))
    elapsed_s = time.perf_counter() - started_s
    return Speed(len(took_s) / elapsed_s, {share: float(np.percentile(took_s, share)) for share in (50, 95, 99)})


def probabilities(port: int, requests: Sequence[bytes]) -> list[float]:
    """Return a server's probability for each image."""

    async def ask_all() -> list[bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        answers = [await _ask(reader, writer, request) for request in requests]
        writer.close()
        return answers

    bodies = [json.load(io.BytesIO(body)) for body in asyncio.run(ask_all())]
    return [body["predictions"][0]["probability"] for body in bodies]


def api_command(folder: Path, port: int) -> list[str]:
    """Return the command that serves the API, with its settings written to `folder`."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return [
        sys.executable, "-m", "serving", "--params", str(folder / "params.yaml"), "--port", str(port),
        "--folder", str(folder / "serving"),
    ]  # fmt: skip


def compare(scratch: Path, images: list[bytes], env: dict[str, str], seconds: float) -> None:
    """Print the speed of both servers, and the largest difference of their answers."""
    rows: dict[str, list[Speed]] = {}
    answers: dict[str, list[float]] = {}
    port = free_port()
    with running(api_command(scratch, port), port, "/readyz", env):
        asked = [api_request(content) for content in images]
        answers["API"] = probabilities(port, asked[:N_COMPARED])
        rows["API"] = [measure(port, asked, n_clients, seconds) for n_clients in CLIENTS]
    port = free_port()
    command = ["mlflow", "models", "serve", "--model-uri", f"models:/{NAME}/1", "--env-manager", "local"]
    with running([*command, "--port", str(port)], port, "/ping", env):
        asked = [mlflow_request(content) for content in images]
        answers["MLflow"] = probabilities(port, asked[:N_COMPARED])
        rows["MLflow"] = [measure(port, asked, n_clients, seconds) for n_clients in CLIENTS]
    print("| server | clients | requests/s | p50 ms | p95 ms | p99 ms |\n| --- | --- | --- | --- | --- | --- |")
    for server_name, speeds in rows.items():
        for n_clients, speed in zip(CLIENTS, speeds, strict=True):
            print(f"| {server_name} | {n_clients} | {speed} |")
    ratios = [ours.requests_per_s / theirs.requests_per_s for ours, theirs in zip(*rows.values(), strict=True)]
    print("times the throughput:", ", ".join(f"{r:.1f} at {n}" for n, r in zip(CLIENTS, ratios, strict=True)))
    print(f"largest difference of a probability: {np.abs(np.subtract(answers['API'], answers['MLflow'])).max():.1e}")


def watch_memory(scratch: Path, images: list[bytes], env: dict[str, str]) -> None:
    """Print the resident memory of the API after each tenth of many requests."""
    port = free_port()
    asked = [api_request(content) for content in images]
    with running(api_command(scratch, port), port, "/readyz", env) as server:
        for tenth in range(1, 11):
            asyncio.run(_load(port, asked, 8, float("inf"), N_MEMORY_REQUESTS // 10))
            n_requests = tenth * N_MEMORY_REQUESTS // 10
            print(f"after {n_requests:,} requests: {server.memory_info().rss / 1e6:.0f} MB", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="metu-subset.zip, or the published archive")
    parser.add_argument("--seconds", type=float, default=10, help="for each number of clients")
    parser.add_argument("--memory", action="store_true", help="measure the memory of the API instead")
    args = parser.parse_args()
    os.environ |= SETTINGS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended, too
    images = read_images(args.metu)
    with tempfile.TemporaryDirectory() as scratch:
        uri = f"sqlite:///{scratch}/mlflow.db"
        env = {"MLFLOW_TRACKING_URI": uri}
        register_model(uri, images)
        if args.memory:
            watch_memory(Path(scratch), images, env)
        else:
            compare(Path(scratch), images, env, args.seconds)


if __name__ == "__main__":
    main()
