"""The images: what they are built from, and that the one of the API needs no more than it installs."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILES = ("Dockerfile", "mlflow/Dockerfile")

# Imports every module that the API may run while hiding all packages but those given.
IMPORT_ALL = """
import importlib, pkgutil, re, sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions

def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()

installed = {"concrete-cracks", *sys.argv[1:]}
hidden = {
    module
    for module, distributions in packages_distributions().items()
    if not installed & set(map(canonical, distributions))
}

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
assert {"tensorflow", "keras", "sklearn", "dvc", "prefect", "great_expectations"} <= hidden
import serving
modules = [module.name for module in pkgutil.walk_packages(serving.__path__, "serving.")]
for name in ["pipeline.inference.served", "pipeline.registry.tracking", "mlflow.artifacts", "apprise", *modules]:
    importlib.import_module(name)
"""


def installed_by(requirements: list[str]) -> set[str]:
    """Return the names of the distributions that requirements bring, by the metadata of those installed here."""
    excluded = PYPROJECT["tool"]["uv"]["exclude-dependencies"]
    seen: set[tuple[str, str]] = set()
    waiting = list(map(Requirement, requirements))
    while waiting:
        wanted = waiting.pop()
        for name, extra in {(canonicalize_name(wanted.name), extra) for extra in ("", *wanted.extras)} - seen:
            seen.add((name, extra))
            for needed in map(Requirement, distribution(name).requires or []):
                if needed.name not in excluded and (needed.marker is None or needed.marker.evaluate({"extra": extra})):
                    waiting.append(needed)
    return {name for name, _ in seen}


API = installed_by(PYPROJECT["dependency-groups"]["api"])


def stage_of(name: str) -> str:
    """Return the text of a stage of the Dockerfile."""
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return next(text for text in stages if f" AS {name}\n" in text)


def test_the_image_by_default_is_the_one_of_the_api() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert stages[-2:] == ["worker", "api"]


def test_base_images_are_pinned_and_the_same() -> None:
    bases = set()
    for name in DOCKERFILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        own = set(re.findall(r" AS (\S+)$", text, re.MULTILINE))
        bases |= set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - own
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases.pop())


def test_what_an_image_copies_is_there_and_let_in() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"]
    for name in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(entry == source or entry.startswith(f"{source}/") for entry in let_in), source


def test_the_owner_of_every_volume_is_set_in_the_image_as_docker_takes_it_from_there() -> None:
    services = yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for name in ("worker", "api"):
        steps = stage_of("runtime") + stage_of(name)
        made = " ".join(re.findall(r"mkdir (?:-p )?([^&\n]+)", steps)).split()
        owned = " ".join(re.findall(r"chown (?:-R )?cracks ([^&\n]+)", steps)).split()
        volumes = [volume.split(":") for volume in services[name]["volumes"] if not volume.startswith(".")]
        folders = {target.removeprefix("/app/") for _, target, *_ in volumes}
        assert {folder for folder in folders if not any(path.startswith(folder) for path in made)} == set(), name
        assert folders <= set(owned), name


def test_the_steps_of_the_worker_leave_a_project_that_dvc_can_run(tmp_path: Path) -> None:
    for name in (".dvcignore", "dvc.yaml", "params.yaml", ".dvc/config", "data/demo.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
    steps = re.findall(r"^RUN ((?:.+\\\n)*.+)", stage_of("worker"), re.MULTILINE)
    assert "state/dvc.lock" in steps[0]
    as_this_user = re.sub(r"&& chown .+", "", "\n".join(steps))
    for command in (as_this_user, "dvc repro --dry --single-item ingest@demo"):
        run = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S602
        assert run.returncode == 0, run.stderr


def test_the_api_installs_nothing_that_trains() -> None:
    trains = {"dvc", "great-expectations", "keras", "mlflow", "prefect", "scikit-learn", "tensorflow", "tensorflow-cpu"}
    assert trains & API == set()
    assert len(API) > 40


@pytest.mark.slow
def test_the_api_imports_nothing_that_its_image_lacks() -> None:
    command = [sys.executable, "-c", IMPORT_ALL, *API]
    imported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert imported.returncode == 0, imported.stderr
