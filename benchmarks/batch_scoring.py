"""How fast many images are scored, how much memory that takes, and what a killed run has to do again.

    python -m benchmarks.batch_scoring --archive metu-subset.zip [--images 100000] [--photos 5000] [--model starter]

Makes a folder of so many images by linking those of the archive again and again, with broken files of known kinds
among them, and starts `cracks predict` on it. The process gets SIGKILL when half of the images are done, and is run
again; then the same with `cracks map`, for which each image is a photo of one tile. Prints a table in Markdown: images
a second and CPU time while scoring; the resident memory after 10,000 images, after the last and at its most; what was
done before the kill and made again; and whether the result has a row for each file and a reason for each broken one.
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
        arguments: all of them.
        result: table that it writes, with a row for each file.
        finished: gives the files that it keeps of what is done, each of which stands for `images_each` images: by path,
            when each was written, in nanoseconds.
        images_each: images of one such file.
    """

    name: str
    arguments: list[str]
    result: Path
    finished: Callable[[], dict[str, int]]
    images_each: int


@dataclass
class Watch:
    """What was seen of a process.

    Attributes:
        peak_mb: largest resident memory of the process.
        early_mb: resident memory after 10,000 images, or the last if there were fewer.
        last_mb: resident memory after the last images.
        start_s: until the first images were done.
        end_s: from the last images done to the end of the process.
        images_per_s: between the first and the last images done.
        cpu_ms: of all cores, for an image, between the same; others on the machine do not move it.
        done: what was finished when it was last looked at.
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
    """Return the whole files of this ending, and when each was written, in nanoseconds."""
    found = {}
    for folder in folders:
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(ending) and not entry.name.startswith("."):
                    found[entry.path] = entry.stat().st_mtime_ns
    return found


def broken_files(image: bytes) -> dict[str, bytes]:
    """Return files that are named like images and cannot be read, by what is wrong with them."""
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
    """Write a folder of `n_files` files, links to the images of an archive and broken ones; return how many are so."""
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


def watch(command: Command, kill_at: int | None = None) -> Watch:
    """Run a command until it ends, or until so many images are done, when it is killed."""
    seen = Watch(done=command.finished())
    n_before = len(seen.done)
    started_s = time.perf_counter()
    growth: list[tuple[float, float, int]] = []  # seconds, CPU seconds, and files finished until then
    with subprocess.Popen([sys.executable, "-m", "pipeline.cli", *command.arguments]) as process:
        running = psutil.Process(process.pid)
        try:
            while process.poll() is None:
                resident_mb = running.memory_info().rss / 1e6
                seen.peak_mb = max(seen.peak_mb, resident_mb)
                done = command.finished()
                if len(done) > len(seen.done):  # they are removed when all are done
                    seen.done = done
                    cpu = running.cpu_times()
                    growth.append((time.perf_counter() - started_s, cpu.user + cpu.system, len(done)))
                    seen.last_mb = resident_mb
                    if (len(done) - n_before) * command.images_each <= EARLY_IMAGES:
                        seen.early_mb = resident_mb
                if kill_at is not None and len(done) * command.images_each >= kill_at:
                    process.kill()
                    break
                time.sleep(POLL_S)
        finally:
            process.kill()
    if not growth or (kill_at is None and process.returncode):
        sys.exit(f"cracks {' '.join(command.arguments)} ended with exit code {process.returncode}")
    (seen.start_s, first_cpu_s, n_first), (last_s, last_cpu_s, n_last) = growth[0], growth[-1]
    n_images = max(1, n_last - n_first) * command.images_each
    seen.end_s = time.perf_counter() - started_s - last_s
    seen.images_per_s = n_images / max(last_s - seen.start_s, POLL_S)
    seen.cpu_ms = 1000 * (last_cpu_s - first_cpu_s) / n_images
    return seen


def made_again(command: Command, first: Watch, second: Watch) -> int:
    """Return how many images were done before the kill and made again."""
    changed = [path for path, time_ns in first.done.items() if second.done.get(path, time_ns) != time_ns]
    return len(changed) * command.images_each


def report(command: Command, n_files: int, n_broken: int) -> None:
    """Score the folder with a kill in the middle, and print what was seen."""
    first = watch(command, kill_at=n_files // 2)
    second = watch(command)
    table = pd.read_csv(command.result, keep_default_na=False)
    n_errors = int((table["error"] != "").sum())
    rows = {
        f"`cracks {command.name}`, {n_files:,} files": ("killed", "run again"),
        "---": ("--:", "--:"),
        "images a second": (f"{first.images_per_s:.0f}", f"{second.images_per_s:.0f}"),
        "CPU ms an image": (f"{first.cpu_ms:.1f}", f"{second.cpu_ms:.1f}"),
        "seconds before the first images": (f"{first.start_s:.0f}", f"{second.start_s:.0f}"),
        "seconds after the last images": ("", f"{second.end_s:.0f}"),
        f"MB after {EARLY_IMAGES:,} images": (f"{first.early_mb:.0f}", f"{second.early_mb:.0f}"),
        "MB after the last images": (f"{first.last_mb:.0f}", f"{second.last_mb:.0f}"),
        "MB at most": (f"{first.peak_mb:.0f}", f"{second.peak_mb:.0f}"),
        "images kept from before": ("", f"{len(first.done) * command.images_each:,}"),
        "of these, made again": ("", f"{made_again(command, first, second):,}"),
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
    parser.add_argument("--images", type=int, default=100_000, help="to predict; 0: none")
    parser.add_argument("--photos", type=int, default=5_000, help="to map; 0: none")
    parser.add_argument("--model", default="starter", help="as for `cracks predict`")
    parser.add_argument("--scratch", type=Path, help="folder to work in; default: that for temporary files")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process is ended too
    for command_of, n_files in ((predict_command, args.images), (map_command, args.photos)):
        if n_files:
            with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                images = Path(scratch) / "images"
                n_broken = write_folder(args.archive, n_files, Path(scratch) / "originals", images)
                report(command_of(images, Path(scratch), args.model), n_files, n_broken)


if __name__ == "__main__":
    main()
