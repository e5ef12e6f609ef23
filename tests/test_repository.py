"""The layout keeps its promises: what DVC follows, what may import what, what must not be there."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
# What these do decides no result; the values of params are followed by DVC itself.
NOT_FOLLOWED = re.compile(
    r"pipeline/(errors|files|project|stage|params/\w+|registry/(bounded_requests|runs|store_errors|tracking))\.py"
)


def file_of(module: str, root: Path) -> Path | None:
    """Return the file of a module by its dotted name, None where it is no module of the project."""
    path = root.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported_files(path: Path, root: Path) -> set[Path]:
    """Return the files of the project that a file imports, but not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            # of `from package import name`, the name may be a module or something in the package's own file
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {file for name in names if (file := file_of(name, root))}


def files_behind(stage: str, root: Path = ROOT) -> set[str]:
    """Return the modules of the pipeline that a stage runs, itself included, as paths from the root."""
    seen: set[Path] = set()
    waiting = {root / "pipeline" / f"{stage}.py"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= imported_files(path, root) - seen
    paths = {path.relative_to(root).as_posix() for path in seen if path.read_text(encoding="utf-8").strip()}
    return {path for path in paths if path.startswith("pipeline/") and not is_docstring_alone(root / path)}


def is_docstring_alone(path: Path) -> bool:
    """Return whether a file, such as one of a package, has no code that could decide a result."""
    return len(ast.parse(path.read_text(encoding="utf-8")).body) == 1 and path.name == "__init__.py"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_every_module_that_it_runs(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    listed = {dep for dep in stage["deps"] if dep.startswith("pipeline/") and dep.endswith(".py")}
    assert listed == {path for path in files_behind(name) if not NOT_FOLLOWED.fullmatch(path)}


def test_modules_behind_a_stage_are_found_in_packages_and_through_others(tmp_path: Path) -> None:
    (tmp_path / "pipeline" / "data").mkdir(parents=True)
    (tmp_path / "pipeline" / "data" / "__init__.py").write_text('"""Data."""\n')
    (tmp_path / "pipeline" / "train.py").write_text("from pipeline.data import images\n")
    (tmp_path / "pipeline" / "data" / "images.py").write_text("from pipeline.data.sources import read\n")
    (tmp_path / "pipeline" / "data" / "sources.py").write_text("def read():\n    import numpy\n")
    (tmp_path / "pipeline" / "data" / "demo.py").write_text("")
    assert files_behind("train", tmp_path) == {
        f"pipeline/{name}.py" for name in ("train", "data/images", "data/sources")
    }


def templates_behind(stage: str) -> set[str]:
    """Return the templates that the modules of a stage render, and those that these extend or include."""
    waiting, seen = set(), set()
    for path in files_behind(stage):
        waiting |= set(re.findall(r'template\("([^"]+)"\)', (ROOT / path).read_text(encoding="utf-8")))
    while waiting:
        name = waiting.pop()
        seen.add(name)
        text = (ROOT / "pipeline" / name).read_text(encoding="utf-8")
        waiting |= set(re.findall(r'{% (?:extends|include) "([^"]+)"', text)) - seen
    return {f"pipeline/{name}" for name in seen}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_writes_a_page_depends_on_its_templates(name: str) -> None:
    deps = STAGES[name].get("do", STAGES[name])["deps"]
    assert {dep for dep in deps if dep.endswith(".j2")} == templates_behind(name)


@pytest.mark.parametrize("name", STAGES)
def test_every_path_of_a_command_is_a_dependency_or_an_output(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    declared = {
        entry if isinstance(entry, str) else next(iter(entry))
        for kind in ("deps", "outs", "metrics", "plots")
        for entry in stage.get(kind, [])
    }
    paths = set(re.findall(r"--[\w-]+ ((?:data|models|reports)\S*)", stage["cmd"]))
    # unfinished work, and the history of all validations, both of which outlive a run
    kept = {path for path in paths if path.startswith(("data/checkpoints/", "data/gx"))}
    assert paths - kept <= declared


@pytest.mark.parametrize("name", ["embed", "train", "leave_one_source_out", "evaluate"])
def test_a_change_of_a_citation_alone_computes_nothing_expensive_again(name: str) -> None:
    assert "datasets" not in STAGES[name].get("do", STAGES[name])["params"]


@pytest.mark.slow
def test_an_import_against_the_layers_is_found(tmp_path: Path) -> None:
    for name in ("pipeline", "flows", "serving", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    lint = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    assert subprocess.run(lint, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    with (tmp_path / "pipeline" / "data" / "images.py").open("a") as file:
        file.write("from pipeline.training import probe  # noqa\n")
    found = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "pipeline.data is not allowed to import pipeline.training" in " ".join(found.stdout.split())


def test_a_module_has_a_name_of_its_own() -> None:
    files = [path for package in ("pipeline", "serving") for path in (ROOT / package).rglob("*.py")]
    names = [
        path.stem for path in files if path.parent.name != "commands" and path.stem not in ("__init__", "__main__")
    ]
    assert sorted(names) == sorted(set(names))


def test_no_module_is_longer_than_300_lines() -> None:
    files = [path for package in ("pipeline", "flows", "serving") for path in (ROOT / package).rglob("*.py")]
    assert {path.name for path in files if path.read_text(encoding="utf-8").count("\n") > 300} == set()


def test_no_python_file_under_mlflow_shadows_the_library() -> None:
    artifacts = ROOT / "mlflow" / "artifacts"  # models carry a copy of their code, which nothing here imports
    found = [path for path in (ROOT / "mlflow").rglob("*.py") if not path.is_relative_to(artifacts)]
    assert found == []
    assert not (ROOT / "tests" / "mlflow").exists()


def test_mlflow_is_the_library_for_code_run_from_the_root() -> None:
    code = "import importlib.util as u; print(u.find_spec('mlflow').origin)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in found.stdout


@pytest.mark.parametrize("target", ["serve", "up"])
def test_an_api_that_make_starts_has_the_starter_model_to_begin_with(target: str) -> None:
    command = ["make", "--dry-run", "--what-if=pipeline/inference/starter.npz", target]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written, _, started = planned.partition("--out data/serving/starter")
    assert "pipeline.inference.build_starter served" in written
    assert "--starter data/serving/starter" in started
