"""The layout keeps its promises: what DVC follows, what may import what, what must not be there."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
# What these do decides no result; the values of params are followed by DVC itself.
NOT_FOLLOWED = {"errors", "files", "params", "project", "stage", "tracking"}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the project's packages that a file imports, but not for types alone."""
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pipeline", "flows", "serving"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def modules_behind(stage: str) -> set[str]:
    """Return the pipeline modules that a stage runs, itself included."""
    seen: set[str] = set()
    waiting = {stage}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        imported = imported_modules(ROOT / "pipeline" / f"{module}.py")
        found = {name.removeprefix("pipeline.") for name in imported if name.startswith("pipeline.")}
        waiting |= found - seen - NOT_FOLLOWED
    return seen


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_every_module_that_it_runs(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    listed = {Path(dep).stem for dep in stage["deps"] if dep.startswith("pipeline/") and dep.endswith(".py")}
    assert listed == modules_behind(name) - (NOT_FOLLOWED - {name})


@pytest.mark.parametrize(
    ("stage", "template"),
    [
        ("report", "report.html.j2"),
        ("report", "report_card.html.j2"),
        ("report", "report_data.html.j2"),
        ("report", "report_model.html.j2"),
        ("report", "report_slices.html.j2"),
        ("report", "page.html.j2"),
        ("validate", "contract.html.j2"),
        ("validate", "page.html.j2"),
        ("split", "contract.html.j2"),
        ("split", "page.html.j2"),
    ],
)
def test_a_stage_that_writes_a_page_depends_on_its_templates(stage: str, template: str) -> None:
    assert f"pipeline/{template}" in STAGES[stage].get("do", STAGES[stage])["deps"]


def test_what_makes_the_report_reruns_report_and_what_logs_it_alone() -> None:
    stages = {name: stage.get("do", stage) for name, stage in STAGES.items()}
    makes_it = modules_behind("report") - modules_behind("evaluate") - NOT_FOLLOWED
    shared = {"page"}  # with the pages of the contract, which validate and split leave also where they refuse
    files = {f"pipeline/{module}.py" for module in makes_it - shared}
    files |= {dep for dep in stages["report"]["deps"] if Path(dep).name.startswith("report") and dep.endswith(".j2")}
    assert {"pipeline/report_page.py", "pipeline/plots.py", "pipeline/report.html.j2"} <= files
    assert [name for name, stage in stages.items() if files & set(stage["deps"])] == ["report"]
    shown = set(stages["report"]["outs"])
    assert [name for name, stage in stages.items() if shown & set(stage["deps"])] == ["register"]


@pytest.mark.parametrize("name", STAGES)
def test_every_path_of_a_command_is_a_dependency_or_an_output(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    declared = {
        entry if isinstance(entry, str) else next(iter(entry))
        for kind in ("deps", "outs", "metrics", "plots")
        for entry in stage.get(kind, [])
    }
    paths = set(re.findall(r"--[\w-]+ ((?:data|models|reports)\S*)", stage["cmd"]))
    unfinished_work = {path for path in paths if path.startswith("data/checkpoints/")}
    assert paths - unfinished_work <= declared


def test_the_pipeline_imports_nothing_of_flows_or_serving() -> None:
    for path in (ROOT / "pipeline").glob("*.py"):
        assert not {name for name in imported_modules(path) if name.split(".")[0] in ("flows", "serving")}, path


def test_no_python_file_under_mlflow_shadows_the_library() -> None:
    assert list((ROOT / "mlflow").rglob("*.py")) == []
    assert not (ROOT / "tests" / "mlflow").exists()


def test_mlflow_is_the_library_for_code_run_from_the_root() -> None:
    code = "import importlib.util as u; print(u.find_spec('mlflow').origin)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in found.stdout


def pins(lock: str) -> dict[str, str]:
    """Return the version of each package of a lock."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("lock", "at_least"), [("requirements.lock", 200), ("requirements-dev.lock", 200), ("requirements-api.lock", 40)]
)
def test_a_lock_has_hashes_and_no_index_addresses(lock: str, at_least: int) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert len(pins(lock)) > at_least
    assert text.count("--hash=sha256:") >= len(pins(lock))
    assert "://" not in text


@pytest.mark.parametrize("lock", ["requirements-dev.lock", "requirements-api.lock"])
def test_the_locks_agree(lock: str) -> None:
    ours = pins("requirements.lock")
    assert {name: pin for name, pin in pins(lock).items() if ours.get(name, pin) != pin} == {}


def test_the_api_installs_nothing_that_trains() -> None:
    trains = {"dvc", "great-expectations", "keras", "mlflow", "prefect", "scikit-learn", "tensorflow", "tensorflow-cpu"}
    assert trains & set(pins("requirements-api.lock")) == set()
    assert set(pins("requirements-api.lock")) <= set(pins("requirements.lock"))


def test_every_direct_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    wanted = [re.split(r"[\[=<>; ]", line)[0] for line in project["dependencies"]]
    assert [name for name in wanted if f"\n{name}==" not in f"\n{lock}"] == ["tensorflow"]  # for other platforms


@pytest.mark.parametrize("target", ["serve", "up"])
def test_an_api_that_make_starts_has_the_starter_model_to_begin_with(target: str) -> None:
    command = ["make", "--dry-run", "--what-if=pipeline/starter.npz", target]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written, _, started = planned.partition("--out data/serving/starter")
    assert "pipeline.build_starter served" in written
    assert "--starter data/serving/starter" in started
