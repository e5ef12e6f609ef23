"""DVC's stages, read and run. The graph has one owner, dvc.yaml; nothing here knows a stage by name."""

import os
import signal
import subprocess
from collections.abc import Callable

from pipeline.errors import CracksError
from pipeline.tracking import project_root

UNCHANGED = "didn't change, skipping"
FROM_CACHE = "is cached - skipping run"


def stages_in_order() -> list[str]:
    """Return the names of all stages of dvc.yaml, each after those that it depends on.

    Raises:
        CracksError: dvc.yaml or params.yaml cannot be read.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project_root())) as repo:
            # An edge leads from a stage to what it needs; of stages ready together the first by name goes first.
            order = networkx.lexicographical_topological_sort(
                repo.index.graph.reverse(copy=True), key=lambda stage: stage.addressing
            )
            return [stage.addressing for stage in order if stage.cmd]
    except DvcException as error:
        raise CracksError(f"DVC cannot read the stages: {error}. `dvc stage list` says the same.") from None


def reproduce(stage: str, log_line: Callable[[str], None]) -> bool:
    """Bring one stage up to date, each line it prints going to `log_line` as it comes; return whether it had to run.

    The stage has its own process group, which ends with this function: a stage that outlived its caller would go on
    writing under the next one's hands.

    Raises:
        CracksError: the stage failed; the log has its own message.
    """
    process = subprocess.Popen(
        ["dvc", "repro", "--single-item", stage],
        cwd=project_root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    has_run = True
    try:
        for line in process.stdout or ():
            if UNCHANGED in line or FROM_CACHE in line:
                has_run = False
            if line.strip():
                log_line(line.rstrip())
        process.wait()
    finally:
        _end_group(process.pid)
    if process.returncode != 0:
        raise CracksError(f"Stage {stage} failed. Its message is in the log above; mend that and run the flow again.")
    return has_run


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
