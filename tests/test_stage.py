import importlib
import logging
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Annotated

import pytest

from pipeline.errors import CracksError, RefusedError, UnavailableError
from pipeline.inference.dask_cluster import compute_on_cluster
from pipeline.params import Params
from pipeline.stage import EXTRAS, run_main, stage_main, stage_parser

PARAMS_FILE = Path(__file__).parent.parent / "params.yaml"


@pytest.fixture(autouse=True)
def _levels_and_path_as_before(monkeypatch):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    loggers = [logging.getLogger(name) for name in ("pipeline", "__main__")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("error", "code"), [(CracksError, "2"), (RefusedError, "3"), (UnavailableError, "4")])
def test_a_project_error_ends_with_its_exit_code_and_only_its_message(error, code, capsys):
    with pytest.raises(SystemExit, match=f"^{code}$"):
        run_main(raising(error("The archive is cut short.\nDownload it again.")))
    assert capsys.readouterr() == ("", "error: The archive is cut short.\nDownload it again.\n")


def test_a_stage_that_is_interrupted_ends_with_130(capsys):
    with pytest.raises(SystemExit, match=r"^130$"):
        run_main(raising(KeyboardInterrupt()))
    assert capsys.readouterr() == ("", "")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run_main(lambda: 1 / 0)


def test_a_package_of_an_extra_that_is_not_installed_is_named_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SystemExit, match=r"^2$"):
        run_main(lambda: list(compute_on_cluster("tcp://nowhere:1", max, 0, [(0, 0)], local_hint="")))
    assert capsys.readouterr() == ("", "error: distributed is not installed. Run: make install EXTRAS=cluster\n")


def test_any_other_package_that_is_missing_is_a_defect():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        run_main(lambda: importlib.import_module("no_such_package"))


def test_the_packages_of_extras_are_those_of_the_project_file():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for module, extra in EXTRAS.items():
        (distribution,) = packages_distributions()[module]
        assert distribution in project["optional-dependencies"][extra]


def test_a_stage_that_succeeds_returns():
    done = []
    run_main(lambda: done.append(True))
    assert done == [True]


@pytest.mark.parametrize(
    ("last_line", "code", "message"),
    [
        ("raise CracksError('bad')", 2, "hello\nerror: bad\n"),
        (
            "raise OSError(28, 'No space left on device', 'out.csv')",
            2,
            "hello\nerror: No space left on device: out.csv. Make room on that disk (`make gc` lists what is no longer "
            "used), and run it again.\n",
        ),
        ("pass", 0, "hello\n"),
    ],
)
def test_a_process_logs_to_stderr_and_ends_without_a_traceback(last_line, code, message):
    program = (
        "import logging\nfrom pipeline.errors import CracksError\nfrom pipeline.stage import run_main\n"
        f"def main():\n    logging.getLogger('pipeline.ingest').info('hello')\n    {last_line}\nrun_main(main)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (code, "", message)


def test_an_error_of_the_operating_system_that_a_person_cannot_mend_keeps_its_traceback():
    with pytest.raises(FileNotFoundError, match="weights"):
        run_main(lambda: Path("weights").read_bytes())


def test_a_stage_that_is_asked_to_end_leaves_nothing_half_written(tmp_path):
    program = (
        "import pathlib, signal, sys\nfrom pipeline.files import replacing_folder\n"
        "from pipeline.stage import run_main\n"
        "def main():\n    with replacing_folder(pathlib.Path(sys.argv[1]) / 'model') as folder:\n"
        "        (folder / 'half').touch()\n        print('begun', flush=True)\n        signal.pause()\nrun_main(main)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_a_stage_whose_library_makes_an_error_of_the_request_to_end_ends_as_asked_without_a_traceback():
    program = (
        "import os, signal, time\nfrom pipeline.stage import run_main\n"
        "def main():\n    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(60)\n"
        "    except SystemExit:\n        raise RuntimeError('Conversion is failed') from None\nrun_main(main)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (143, "")


def test_programs_come_from_the_environment_that_runs_even_if_it_is_not_activated():
    program = "import shutil\nfrom pipeline.stage import run_main\nrun_main(lambda: print(shutil.which('dvc')))"
    command, env = [sys.executable, "-c", program], {"PATH": "/usr/bin:/bin"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(Path(sys.executable).with_name("dvc"))


def test_the_info_lines_of_libraries_are_left_out():
    program = (
        "import logging\nfrom pipeline.stage import run_main\n"
        "run_main(lambda: logging.getLogger('tensorflow').info('chatter'))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert process.stderr == ""


def test_a_stage_requires_the_path_of_its_params(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        stage_parser("Does something.").parse_args([])
    assert "the following arguments are required: --params" in capsys.readouterr().err


def test_the_flags_of_a_stage_are_the_arguments_of_its_function_and_each_is_required(monkeypatch, capsys):
    calls = []

    def run(params: Params, name: Annotated[str, "its name"], *, model_folder: Annotated[Path, "folder to read"]):
        calls.append((type(params), name, model_folder))

    arguments = ["stage", "--params", str(PARAMS_FILE), "--name", "walls", "--model-folder", "models"]
    monkeypatch.setattr(sys, "argv", arguments)
    stage_main(run)()
    assert calls == [(Params, "walls", Path("models"))]
    monkeypatch.setattr(sys, "argv", arguments[:-2])
    with pytest.raises(SystemExit, match=r"^2$"):
        stage_main(run)()
    assert "the following arguments are required: --model-folder" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["stage", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        stage_main(run)()
    assert "folder to read" in capsys.readouterr().out
