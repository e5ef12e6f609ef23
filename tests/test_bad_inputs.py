"""Each file of `bad_inputs/KIND/` makes one bad input, and says what a command must answer to it.

Such a file has

- a docstring, the sentence that is tested;
- `make(folder)`, which writes the input into a folder that has only params.yaml;
- `COMMANDS`, each a line such as "cracks audit set", run in the folder one after the other;
- `SAYS`, words that the last command must print, and optionally `SAYS_NOT`, words that no command may print;
- optionally `EXIT_CODE` of the last command (0 by default; the others must end with 0), `MAX_SECONDS` and `MAX_MB` of
  memory for each command, `MARKS` such as "slow", and `check(folder)`, which asserts more about what was written.

No command may print a traceback. A file that is added is tested; nothing lists them.
"""

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FOREIGN, ROOT

FOLDER = Path(__file__).parent / "bad_inputs"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases() -> list[object]:
    """Return each input as a parameter of the test, named KIND/NAME."""
    parameters = []
    for path in sorted(FOLDER.glob("*/*.py")):
        module = loaded(path)
        marks = [getattr(pytest.mark, name) for name in getattr(module, "MARKS", ())]
        parameters.append(pytest.param(module, id=f"{path.parent.name}/{path.stem}", marks=marks))
    return parameters


def run(command: str, folder: Path, max_seconds: float, max_mb: float) -> tuple[int, str]:
    """Run a command in `folder` as a person would; return its exit code and what it printed."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
    log = folder.with_name("output.txt")
    with log.open("wb") as output:
        process = subprocess.Popen(
            shlex.split(command), cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = threading.Timer(max_seconds, os.killpg, (process.pid, signal.SIGKILL))
    deadline.start()
    _, status, usage = os.wait4(process.pid, 0)
    deadline.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    printed = log.read_text(encoding="utf-8", errors="replace")
    assert process.returncode != -signal.SIGKILL, f"{command} did not end within {max_seconds:g} s:\n{printed}"
    assert usage.ru_maxrss / 1024 < max_mb, f"{command} took {usage.ru_maxrss / 1024:.0f} MB"
    return process.returncode, printed


@pytest.mark.parametrize("case", cases())
def test_a_bad_input_is_answered_as_it_should_be(case: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy2(ROOT / "params.yaml", folder)
    case.make(folder)
    printed = ""
    for i, command in enumerate(case.COMMANDS):
        exit_code, printed = run(command, folder, getattr(case, "MAX_SECONDS", 120), getattr(case, "MAX_MB", 4000))
        expected = getattr(case, "EXIT_CODE", 0) if i == len(case.COMMANDS) - 1 else 0
        assert exit_code == expected, printed
        assert "Traceback" not in printed
        for words in getattr(case, "SAYS_NOT", ()):
            assert words not in printed
    for words in case.SAYS:
        assert words in printed, printed
    if hasattr(case, "check"):
        case.check(folder)
