"""Read and run DVC's stages. dvc.yaml defines the graph; no stage name occurs here."""

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from pipeline.errors import CracksError, RefusedError, UnavailableError
from pipeline.files import read_json, write_text
from pipeline.params import Flow
from pipeline.process_identity import is_gone, this_process
from pipeline.project import project_root

UNCHANGED = "didn't change, skipping"
# Messages of DVC when another DVC process has locked a file or the project.
BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
EXIT_CODE = re.compile(r"exited with (-?\d+)")
END_S = 10  # for killed processes to end
LINES_KEPT = 500  # last lines of a stage's output, to find its error message in
EMPTY_DVC_LOCK = "schema: '2.0'\n"
STARTED_BY_VARIABLE = "CRACKS_STAGE_OF"  # in the environment of a stage's processes: the process that started it

LogLine = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml."""

    needs: frozenset[str]  # stages that must be up to date before it
    has_changed: bool  # since it last ran, itself or a file that it reads or writes


def read_graph() -> dict[str, Stage]:
    """Return all stages of dvc.yaml by name. Raises CracksError if dvc.yaml or params.yaml cannot be read."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project_root()), _wait_for_lock=True) as repo, repo.lock:
            return {
                stage.addressing: Stage(
                    frozenset(other.addressing for other in repo.index.graph.successors(stage) if other.cmd),
                    stage.changed(),
                )
                for stage in repo.index.graph
                if stage.cmd
            }
    except DvcException as error:
        raise CracksError(f"DVC cannot read the stages: {error}. `cracks check` says what is missing.") from None


class StageRunner:
    """Runs stages, each in its own process group, and can end all running stages at once."""

    def __init__(self, settings: Flow) -> None:
        self._settings = settings
        self._groups: set[int] = set()
        self._guard = threading.Lock()
        self._slots = threading.BoundedSemaphore(settings.max_parallel_stages)
        self.ended = threading.Event()  # by `end`; stages that fail afterwards were stopped

    def end(self) -> None:
        """End every running stage with all its processes, and start no more."""
        with self._guard:
            self.ended.set()
            for group in self._groups:
                _end_group(group)

    def reproduce(self, stage: str, log_line: LogLine) -> bool:
        """Bring one stage up to date, once a slot is free; return whether it ran or came from the run cache.

        Raises UnavailableError if a service is unavailable or DVC is busy, RefusedError if a rule of the project
        refused it, CracksError if it failed in another way or timed out; the message includes the stage's own.
        """
        lines: collections.deque[str] = collections.deque(maxlen=LINES_KEPT)

        def read(output: Iterable[str]) -> None:
            for line in filter(None, map(str.rstrip, output)):
                lines.append(line)
                log_line(line)

        limit_minutes = self._settings.stage_timeout_minutes
        with self._slots, self._start(stage) as process:
            reader = threading.Thread(target=read, args=(process.stdout or (),))
            reader.start()
            try:
                process.wait(limit_minutes * 60)
            except subprocess.TimeoutExpired:
                raise CracksError(
                    f"Stage {stage} was still running after {limit_minutes:g} minutes and was ended. See in the log "
                    "where it stopped, or raise flow.stage_timeout_minutes in params.yaml."
                ) from None
            finally:
                # Processes that outlive DVC would write to the files of the next stage.
                _end_group(process.pid)
                reader.join()
                with self._guard:
                    self._groups.discard(process.pid)
        if process.returncode != 0:
            raise _failure(stage, list(lines))
        return not any(UNCHANGED in line for line in lines)

    def _start(self, stage: str) -> subprocess.Popen[str]:
        with self._guard:
            if self.ended.is_set():
                raise CracksError(f"Stage {stage} was not started: its flow is ending.")
            holder = json.dumps({**this_process(), "root": str(project_root())})
            process = subprocess.Popen(
                ["dvc", "--wait-for-lock", "repro", "--single-item", stage],
                cwd=project_root(),
                env=os.environ | {STARTED_BY_VARIABLE: holder},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._groups.add(process.pid)
            return process


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(group, signal.SIGKILL)


def _failure(stage: str, lines: list[str]) -> CracksError:
    """Return the error of a failed stage, derived from its output."""
    text = "\n".join(lines)
    if any(sign in text for sign in BUSY):
        return UnavailableError(f"Stage {stage} is blocked by another DVC process: {lines[-1]}")
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    own = [line for line in lines[starts[-1] :] if not line.startswith("ERROR: ")] if starts else []
    message = (
        "\n".join(own).removeprefix("error: ") or "Its message is in the log above; correct the cause and run again."
    )
    codes = EXIT_CODE.findall(text)
    code = int(codes[-1]) if codes else CracksError.exit_code  # DVC itself cannot go on, as without a dependency
    if code < 0:  # killed, by the kernel where memory was short
        message = f"It was killed by signal {-code}. The machine may have too little memory."
    kinds = {kind.exit_code: kind for kind in (CracksError, RefusedError, UnavailableError)}
    error = kinds.get(code, CracksError)(f"Stage {stage} failed. {message}")
    if code not in kinds:
        error.exit_code = 1  # a defect
    return error


def end_orphans(log_line: LogLine) -> None:
    """End the stages of this project whose flow was killed; they would write to the files of the next run."""
    orphans = []
    for process in psutil.process_iter(["environ"]):  # None for those of other users
        holder = json.loads((process.info["environ"] or {}).get(STARTED_BY_VARIABLE, "{}"))
        if holder.get("root") == str(project_root()) and is_gone(holder):
            orphans.append(process)
    for process in orphans:
        log_line(f"Ended process {process.pid}, left behind by a flow that was killed.")
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(orphans, timeout=END_S)


def clear_locks(log_line: LogLine) -> None:
    """Repair what a killed DVC leaves and would block later runs: stale locks, and a partly written dvc.lock.

    DVC ignores the locks of a process that has ended, but not if its id was reused, and it writes neither file
    atomically. With an empty dvc.lock, it finds finished stages in its run cache.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import make_lock

    root = project_root()
    folder = root / ".dvc" / "tmp"
    if not folder.parent.is_dir():
        return  # no project, as `read_graph` will say
    folder.mkdir(exist_ok=True)
    try:
        with make_lock(str(folder / "lock")), make_lock(str(folder / "rwlock.lock")):
            if not _locks_are_held(folder / "rwlock"):
                (folder / "rwlock").unlink(missing_ok=True)
            dvc_lock = (root / "dvc.lock").resolve()  # in the image a link into a volume; DVC fails on a dangling link
            if not _is_complete(dvc_lock):
                shutil.copyfile(dvc_lock, folder / "dvc.lock.broken")
                write_text(dvc_lock, EMPTY_DVC_LOCK)
                log_line("dvc.lock was truncated when DVC was killed; it is restored from the run cache.")
    except DvcException:
        return  # another DVC process is running, so there is nothing to repair


def _locks_are_held(path: Path) -> bool:
    try:
        held = read_json(path, {})
    except ValueError:
        return False
    writers: Iterable[dict[str, object]] = held.get("write", {}).values()
    readers = (reader for readers in held.get("read", {}).values() for reader in readers)
    return any(_runs(int(str(info["pid"])), str(info["cmd"])) for info in (*writers, *readers))


def _runs(pid: int, command: str) -> bool:
    try:
        return command in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _is_complete(dvc_lock: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        text = dvc_lock.read_text(encoding="utf-8")
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except FileNotFoundError:
        return True
    except (yaml.YAMLError, UnicodeDecodeError, Invalid):
        return False
    return text.endswith("\n")  # a truncated `hash: md` is valid YAML too, and would make DVC fail
