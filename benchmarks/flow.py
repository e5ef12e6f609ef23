"""Measures the overhead of the training flow over plain `dvc repro`, and what it gains from parallel stages.

    python -m benchmarks.flow --repeats 5

Copies the committed files of the project twice, starts a Prefect server, and alternates between `dvc repro` and the
flow on the running server:

- fresh: the demo with another seed, so that every stage runs;
- cached: every stage is up to date.

Prints a table in Markdown with the median and the range of the wall seconds.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

ROOT = Path(__file__).parents[1]
WAYS = {"dvc repro": ["dvc", "repro"], "flow": [sys.executable, "-m", "flows.training"]}
# Each fresh round sets another seed: no stage is up to date, and none is in DVC's run cache.
FIRST_SEED = 100


@contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """Yield the address of the API of a server whose database is in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}/api"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | {"PREFECT_HOME": str(folder)}, stdout=log, stderr=log)
    try:
        while True:
            try:
                httpx.get(f"{address}/health", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def copy_project(target: Path) -> None:
    """Copy the committed files: the demo before any stage has run."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listing.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    subprocess.run(["dvc", "config", "--local", "core.no_scm", "true"], cwd=target, check=True)


def set_seed(project: Path, seed: int) -> None:
    """Set another seed for the drawn images, so that every stage runs."""
    settings = project / "data" / "demo.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"seed": seed}))


def measured(command: list[str], project: Path, api: str) -> float:
    """Return the wall seconds of a command in the project; exit if it fails."""
    env = os.environ | {"PREFECT_API_URL": api, "PYTHONPATH": str(project), "MLFLOW_TRACKING_URI": ""}
    started_s = time.perf_counter()
    finished = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{finished.stdout}{finished.stderr}")
    return time.perf_counter() - started_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="number of cached runs")
    parser.add_argument("--fresh-repeats", type=int, default=1, help="number of fresh runs, which take minutes each")
    args = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = {(kind, way): [] for kind in ("fresh", "cached") for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        projects = {way: Path(scratch) / way.replace(" ", "-") for way in WAYS}
        for project in projects.values():
            copy_project(project)
        with prefect_server(Path(scratch)) as api:
            for turn in range(args.fresh_repeats + args.repeats):
                kind = "fresh" if turn < args.fresh_repeats else "cached"
                for way, command in WAYS.items():
                    if kind == "fresh":
                        set_seed(projects[way], FIRST_SEED + turn)
                    seconds[kind, way].append(measured(command, projects[way], api))
    print("| stages | way | median s | lowest | highest |\n| --- | --- | --- | --- | --- |")
    for (kind, way), found in seconds.items():
        print(f"| {kind} | {way} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} |")


if __name__ == "__main__":
    main()
