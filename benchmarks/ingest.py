"""Measures time and memory of ingest, validate and split as a data set grows.

    python -m benchmarks.ingest --metu metu.zip --sizes 10000 20000 40000

Enlarges the archive with pieces cut out of its images and with copies of them, and runs the three stages as DVC does,
each in its own process. Prints a table in Markdown: wall seconds of each stage, their sum, and the peak resident memory
of all processes of a stage together.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path

import psutil
import yaml

from benchmarks.alterations import ALTERATIONS, new_piece, read_images

COPIES = 4  # one in this many of the added images is a copy, about as in METU


def grown_image(task: tuple[int, bytes]) -> bytes:
    """Return an altered copy of an image, or a new piece cut out of it."""
    number, content = task
    if number % COPIES == 0:
        return list(ALTERATIONS.values())[number // COPIES % len(ALTERATIONS)](content)
    buffer = io.BytesIO()
    new_piece(content, number).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_grown_archive(archive: Path, n_images: int, target: Path) -> None:
    """Write an archive of `n_images` images with the label folders of METU: the real ones, then grown ones."""
    with zipfile.ZipFile(archive) as opened:
        labels = [name.split("/")[0] for name in opened.namelist() if name.lower().endswith(".jpg")]
    real = list(read_images(archive).values())
    tasks = ((number, real[number % len(real)]) for number in range(len(real), n_images))
    with zipfile.ZipFile(target, "w") as grown, Pool() as pool:
        for number, content in enumerate([*real[:n_images], *pool.imap(grown_image, tasks, chunksize=64)]):
            grown.writestr(f"{labels[number % len(real)]}/{number:06}.jpg", content)


def measured(command: list[str]) -> tuple[float, float]:
    """Return the wall seconds of a command, and the peak resident memory of it and its children together, in GB."""
    started_s = time.perf_counter()
    process = subprocess.Popen(command)
    peak_bytes = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not stop.wait(0.1):
            peak_bytes = max(peak_bytes, sum(_resident_bytes(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    stop.set()
    watcher.join()
    if status:
        sys.exit(f"{' '.join(command)} failed with exit code {status}")
    return time.perf_counter() - started_s, peak_bytes / 1e9


def _resident_bytes(pid: int) -> Iterator[int]:
    try:
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            yield member.memory_info().rss
    except psutil.NoSuchProcess:
        return


def stages(params: Path, folder: Path) -> dict[str, list[str]]:
    """Return the command of each stage."""
    python, datasets, validated = [sys.executable, "-m"], folder / "datasets", folder / "validated"
    common = ["--params", str(params)]
    return {
        "ingest": [*python, "pipeline.ingest", *common, "--dataset", "grown", "--out", str(datasets / "grown")],
        "validate": [
            *[*python, "pipeline.validate", *common, "--name", "grown", "--dataset", str(datasets / "grown")],
            *["--context", str(folder / "gx"), "--report", str(folder / "v.json"), "--page", str(folder / "v.html")],
            *["--result", str(validated / "grown.json")],
        ],
        "split": [
            *[*python, "pipeline.split", *common, "--datasets", str(datasets), "--validated", str(validated)],
            *["--manifest", str(folder / "manifest.parquet"), "--summary", str(folder / "split.json")],
            *["--context", str(folder / "gx"), "--report", str(folder / "s.json"), "--page", str(folder / "s.html")],
        ],
    }


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="archive of METU's layout")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 40_000], help="images")
    parser.add_argument("--params", type=Path, default=Path("examples/params.metu.yaml"), help="params file to use")
    args = parser.parse_args()
    print("| images | ingest s | validate s | split s | all s | peak GB |\n| --: | --: | --: | --: | --: | --: |")
    for n_images in args.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_grown_archive(args.metu, n_images, folder / "grown.zip")
            params = yaml.safe_load(args.params.read_text(encoding="utf-8"))
            params["datasets"] = {"grown": {"source": str(folder / "grown.zip")}}
            params["split"]["train_on"] = ["grown"]
            (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
            figures = [measured(command) for command in stages(folder / "params.yaml", folder).values()]
        seconds = [wall_s for wall_s, _ in figures]
        row = [f"{n_images:,}", *(f"{s:.1f}" for s in [*seconds, sum(seconds)]), f"{max(gb for _, gb in figures):.2f}"]
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
