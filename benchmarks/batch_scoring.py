"""Measures how fast many images are scored, in how much memory, and what a run repeats after a kill.

    python -m benchmarks.batch_scoring --archive metu-subset.zip [--images 100000] [--photos 5000] [--model starter]

Fills a folder with links to the images of the archive and broken files of several kinds, and runs `cracks predict` on
it. The process gets SIGKILL when half of the images are done, and is run again. The same is done with `cracks map`, for
which each image is a photo of one tile. Prints a table in Markdown: images per second and CPU time while scoring;
resident memory after 10,000 images, after the last one, and its maximum; how much finished work was kept and repeated;
and whether the result has a row for each file and an error for each broken one.
"""

import argparse
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil

EARLY_IMAGES = 10_000
FOLDER_IMAGES = 1000
BROKEN_EVERY = 200  # files, of which one is broken
POLL_S = 0.5


@dataclass(frozen=True)
class Command:
    """A command of `cracks` that scores a folder.

    Attributes:
        name: of the command.
        arguments: of `cracks`, including the name.
        result: table that the command writes, with a row for each file.
        finished: returns the files of finished work and when each was written, in nanoseconds.
        images_each: images in a file of finished work.
    """

    name: str
    arguments: list[str]
    result: Path
    finished: Callable[[], dict[str, int]]
    images_each: int


@dataclass
class ProcessStats:
    """Measurements of a process.

    Attributes:
        peak_mb: largest resident memory of the process.
        early_mb: resident memory after 10,000 images, or the last if there were fewer.
        last_mb: resident memory after the last images.
        start_s: from the start to the first finished images.
        end_s: from the last finished images to the end of the process.
        images_per_s: between the first and the last finished images.
        cpu_ms: CPU time per image in the same period; other processes do not affect it.
        done: files of finished work at the last poll.
    """

    peak_mb: float = 0.0
    early_mb: float = 0.0
    last_mb: float = 0.0
    start_s: float = 0.0
    end_s: float = 0.0
    images_per_s: float = 0.0
    cpu_ms: float = 0.0
    done: dict[str, int] = field(default_factory=dict)


def predict_command(images: Path, scratch: Path, model: str) -> Command:
    """Return `cracks predict` on a folder."""
    from pipeline.crack_maps.batch_prediction import PART_IMAGES

    out = scratch / "scores.csv"

    arguments = ["predict", str(images), "--out", str(out), "--model", model]
    return Command("predict", arguments, out, lambda: written(scratch.glob(".*.unfinished"), ".csv"), PART_IMAGES)


def map_command(images: Path, scratch: Path, model: str) -> Command:
    """Return `cracks map` on a folder."""
    out = scratch / "maps"
    arguments = ["map", str(images), "--out", str(out), "--model", model]
    return Command("map", arguments, out / "summary.csv", lambda: written([out], ".json"), 1)


def written(folders: Iterable[Path], ending: str) -> dict[str, int]:
    """Return the complete files with this ending, and when each was written, in nanoseconds."""
    found = {}
    for folder in folders:
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(ending) and not entry.name.startswith("."):
                    found[entry.path] = entry.stat().st_mtime_ns
    return found


def broken_files(image: bytes) -> dict[str, bytes]:
    """Return the contents of broken images, by kind of damage."""
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", len(size)) + b"IHDR" + size + struct.pack(">I", zlib.crc32(b"IHDR" + size))
    return {
        "empty": b"",
        "text": b"no image",
        "cut": image[: len(image) // 2],
        "zeros": bytes(len(image)),
        "enormous": b"\x89PNG\r\n\x1a\n" + header,
    }


def write_folder(archive: Path, n_files: int, originals: Path, target: Path) -> int:
    """Write `n_files` files, links to the images of an archive and broken files; return the number of broken ones."""
    originals.mkdir()
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.lower().endswith(".jpg"))[:n_files]
        for number, name in enumerate(names):
            (originals / f"{number}.jpg").write_bytes(opened.read(name))
    broken = list(broken_files((originals / "0.jpg").read_bytes()).items())
    n_broken = 0
    for number in range(n_files):
        folder = target / f"{number // FOLDER_IMAGES:04}"
        folder.mkdir(parents=True, exist_ok=True)
        if number % BROKEN_EVERY == BROKEN_EVERY // 2:
            kind, content = broken[n_broken % len(broken)]
            (folder / f"{number:06}-{kind}.jpg").write_bytes(content)
            n_broken += 1
        else:
            (folder / f"{number:06}.jpg").hardlink_to(originals / f"{number % len(names)}.jpg")
    return n_broken


def run_monitored(command: Command, kill_at: int | None = None) -> ProcessStats:
    """Run a command to its end, or kill it when `kill_at` images are done; return its measurements."""
    stats = ProcessStats(done=command.finished())
    n_before = len(stats.done)
    started_s = time.perf_counter()
    growth: list[tuple[float, float, int]] = []  # seconds, CPU seconds, and files finished until then
    with subprocess.Popen([sys.executable, "-m", "pipeline.cli", *command.arguments]) as process:
        running = psutil.Process(process.pid)
        try:
            while process.poll() is None:
                resident_mb = running.memory_info().rss / 1e6
                stats.peak_mb = max(stats.peak_mb, resident_mb)
                done = command.finished()
                if len(done) > len(stats.done):  # the command removes them at its end
                    stats.done = done
                    cpu = running.cpu_times()
                    growth.append((time.perf_counter() - started_s, cpu.user + cpu.system, len(done)))
                    stats.last_mb = resident_mb
                    if (len(done) - n_before) * command.images_each <= EARLY_IMAGES:
                        stats.early_mb = resident_mb
                if kill_at is not None and len(done) * command.images_each >= kill_at:
                    process.kill()
                    break
                time.sleep(POLL_S)
        finally:
            process.kill()
    if not growth or (kill_at is None and process.returncode):
        sys.exit(f"cracks {' '.join(command.arguments)} ended with exit code {process.returncode}")
    (stats.start_s, first_cpu_s, n_first), (last_s, last_cpu_s, n_last) = growth[0], growth[-1]
    n_images = max(1, n_last - n_first) * command.images_each
    stats.end_s = time.perf_counter() - started_s - last_s
    stats.images_per_s = n_images / max(last_s - stats.start_s, POLL_S)
    stats.cpu_ms = 1000 * (last_cpu_s - first_cpu_s) / n_images
    return stats


def n_redone(command: Command, first: ProcessStats, second: ProcessStats) -> int:
    """Return how many images were scored before the kill and again after it."""
    changed = [path for path, time_ns in first.done.items() if second.done.get(path, time_ns) != time_ns]
    return len(changed) * command.images_each


def report(command: Command, n_files: int, n_broken: int) -> None:
    """Score the folder with a kill halfway, and print the measurements."""
    first = run_monitored(command, kill_at=n_files // 2)
    second = run_monitored(command)
    table = pd.read_csv(command.result, keep_default_na=False)
    n_errors = int((table["error"] != "").sum())
    rows = {
        f"`cracks {command.name}`, {n_files:,} files": ("killed", "run again"),
        "---": ("--:", "--:"),
        "images per second": (f"{first.images_per_s:.0f}", f"{second.images_per_s:.0f}"),
        "CPU ms per image": (f"{first.cpu_ms:.1f}", f"{second.cpu_ms:.1f}"),
        "seconds before the first images": (f"{first.start_s:.0f}", f"{second.start_s:.0f}"),
        "seconds after the last images": ("", f"{second.end_s:.0f}"),
        f"MB after {EARLY_IMAGES:,} images": (f"{first.early_mb:.0f}", f"{second.early_mb:.0f}"),
        "MB after the last images": (f"{first.last_mb:.0f}", f"{second.last_mb:.0f}"),
        "maximum MB": (f"{first.peak_mb:.0f}", f"{second.peak_mb:.0f}"),
        "images kept from the killed run": ("", f"{len(first.done) * command.images_each:,}"),
        "of these, scored again": ("", f"{n_redone(command, first, second):,}"),
        "rows of the result": ("", f"{len(table):,}"),
        "broken files": ("", f"{n_broken:,}"),
        "rows with an error": ("", f"{n_errors:,}"),
    }
    for name, cells in rows.items():
        print("|", " | ".join([name, *cells]), "|")
    page = command.result.with_name("index.html")
    if page.exists():
        n_mb = {path.name: path.stat().st_size / 1e6 for path in (page, command.result)}
        print("\n" + ", ".join(f"{name}: {size:.1f} MB" for name, size in n_mb.items()))
    print(flush=True)


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="of JPEG files, such as metu-subset.zip")
    parser.add_argument("--images", type=int, default=100_000, help="number for `cracks predict`; 0: skip")
    parser.add_argument("--photos", type=int, default=5_000, help="number for `cracks map`; 0: skip")
    parser.add_argument("--model", default="starter", help="as for `cracks predict`")
    parser.add_argument("--scratch", type=Path, help="working folder (default: a temporary one)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child process is ended, too
    for command_of, n_files in ((predict_command, args.images), (map_command, args.photos)):
        if n_files:
            with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                images = Path(scratch) / "images"
                n_broken = write_folder(args.archive, n_files, Path(scratch) / "originals", images)
                report(command_of(images, Path(scratch), args.model), n_files, n_broken)


if __name__ == "__main__":
    main()
