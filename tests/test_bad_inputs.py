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
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FOREIGN, ROOT

FOLDER = Path(__file__).parent / "bad_inputs"

# Runs a command and notes its memory. The tests' own process cannot: what it needs itself counts for what it starts.
MEASURED = """
import resource, subprocess, sys
exit_code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(exit_code)
"""


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
    log, memory = folder.with_name("output.txt"), folder.with_name("memory.txt")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", MEASURED, memory, *shlex.split(command)],
            cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        exit_code = process.wait(max_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail(f"{command} did not end within {max_seconds:g} s:\n{log.read_text(errors='replace')}")
    n_mb = int(memory.read_text()) / 1024
    assert n_mb < max_mb, f"{command} took {n_mb:.0f} MB"
    return exit_code, log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yield the folder of an input. It is deleted by `rm`: pytest cannot delete what is nested too deep for Python."""
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy2(ROOT / "params.yaml", folder)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize("case", cases())
def test_a_bad_input_is_answered_as_it_should_be(case: ModuleType, folder: Path) -> None:
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
