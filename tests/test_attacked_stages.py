"""Each stage of a trained project meets a full disk, a folder for reading only, and SIGTERM while it works.

It says in a sentence what was wrong, leaves nothing half written, and changes no output that DVC trusts; when it runs
again, its outputs are those of before. The commands are those of the project's dvc.lock.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project, copy_of

pytestmark = pytest.mark.slow(15)

DISK = "size=300m"
SPARE_BYTES = (0, 16_384, 1_000_000)  # left on a full disk: the first file fails, the middle of one, or a large one
MOMENTS = (0.5, 0.8, 0.95)  # of a stage's run time
ENDED = (128 + signal.SIGTERM, -signal.SIGTERM, 0)  # by its handler; before or after Python has one; done already
Outputs = dict[str, str]
Attack = Callable[[Project, dict[str, Any]], Iterator[tuple[int, str, tuple[int, ...]]]]


def mount(*arguments: str | Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", *arguments], check=False).returncode != 0:
        pytest.skip("a full disk and a folder for reading only need the right to mount")


@pytest.fixture
def small_disk(trained: Project, tmp_path: Path) -> Iterator[Project]:
    """Yield a copy of the trained project on a small disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", DISK, "none", disk)
    try:
        yield copy_of(trained.root, disk / trained.root.name)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@contextlib.contextmanager
def full_disk(root: Path, spare_bytes: int) -> Iterator[None]:
    filler = root.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(root).free - spare_bytes)
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def on_a_full_disk(project: Project, stage: dict[str, Any]) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    for spare_bytes in SPARE_BYTES:
        with full_disk(project.root, spare_bytes):
            run = project.run(*shlex.split(stage["cmd"]))
        yield run.returncode, run.stdout + run.stderr, (2, 4) if spare_bytes == 0 else (0, 2, 4)


def without_the_right_to_write(project: Project, stage: dict[str, Any]) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    for folder in sorted({(project.root / output["path"]).parent for output in stage["outs"]}):
        with read_only(folder):
            run = project.run(*shlex.split(stage["cmd"]))
        yield run.returncode, run.stdout + run.stderr, (2, 4)


def asked_to_end(project: Project, stage: dict[str, Any]) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    began_s = time.monotonic()
    assert project.run(*shlex.split(stage["cmd"])).returncode == 0
    seconds = time.monotonic() - began_s
    for moment in MOMENTS:
        process = project.start(*shlex.split(stage["cmd"]))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment * seconds)
        process.terminate()
        yield process.wait(120), project.log.read_text(encoding="utf-8"), ENDED


def content(path: Path) -> str:
    """Return a hash of what a file says; a Keras model also names the time at which it was saved, and addresses."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as model:
            return hashlib.sha256(model.read("model.weights.h5")).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outputs(project: Project, stages: dict[str, dict[str, Any]]) -> Outputs:
    """Return a hash of each file that is an output of these stages."""
    tops = [project.root / output["path"] for stage in stages.values() for output in stage["outs"]]
    files = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()]
    return {str(path.relative_to(project.root)): content(path) for path in files}


def faults(project: Project, attack: Attack, names: list[str]) -> list[str]:
    """Return what went wrong when these stages were attacked, all stages where none is named."""
    stages = yaml.safe_load((project.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    before, found = outputs(project, stages), []
    for name in names or stages:
        for number, (exit_code, printed, allowed) in enumerate(attack(project, stages[name])):
            after, case = outputs(project, stages), f"{name}, attack {number}"
            if exit_code not in allowed or "Traceback" in printed:
                found.append(f"{case} ended with {exit_code}:\n{printed}")
            if changed := [path for path in after if after[path] != before[path]]:  # what is gone, nothing trusts
                found.append(f"{case} changed {changed}")
            if left := list(project.root.rglob("*.partial")):
                found.append(f"{case} left {left}")
        project.repro("--force", "--single-item", name)
        if outputs(project, stages) != before:
            found.append(f"{name} has other outputs when it runs again")
    return found


@pytest.mark.parametrize(
    ("attack", "names"),
    [(on_a_full_disk, ["ingest@demo"]), (asked_to_end, ["ingest@demo"])]
    + [pytest.param(attack, [], marks=pytest.mark.soak)
       for attack in (on_a_full_disk, without_the_right_to_write, asked_to_end)],
)  # fmt: skip
def test_a_stage_that_cannot_write_or_must_end_says_so_and_leaves_all_as_it_was(
    small_disk: Project, attack: Attack, names: list[str]
) -> None:
    assert faults(small_disk, attack, names) == []


@pytest.mark.soak
def test_a_clock_that_is_set_back_between_two_stages_changes_nothing(project: Project) -> None:
    stages = yaml.safe_load((project.root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    before = outputs(project, stages)
    later_s = time.time() + 86_400
    for path in before:  # as if they were written before the clock was set back by a day
        os.utime(project.root / path, (later_s, later_s), follow_symlinks=False)
    assert "Running stage" not in project.repro()
    for name in ("split", "register"):
        project.repro("--force", "--single-item", name)
    assert outputs(project, stages) == before
    assert project.run(sys.executable, "-m", "pipeline.cli", "registered").returncode == 0
