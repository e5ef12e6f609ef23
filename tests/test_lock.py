"""requirements.lock: hashes for every platform that is promised, in line with pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT_NAME
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLATFORMS = {
    "Linux x86-64": ("linux", "x86_64", [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]),
    "Linux arm64": ("linux", "aarch64", [f"manylinux_2_{minor}_aarch64" for minor in range(35, 16, -1)]),
    "macOS arm64": ("darwin", "arm64", list(mac_platforms((14, 0), "arm64"))),
}
OLD_NAMES = {"manylinux_2_5_x86_64": "manylinux1", "manylinux_2_12_x86_64": "manylinux2010"}
PYTHONS = [(3, 11), (3, 12), (3, 13)]
WITHOUT_WHEEL = {"antlr4-python3-runtime"}  # pure Python, built by the setuptools of the lock


def pins(lock: str) -> dict[str, str]:
    """Return the version of each package of a lock."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))


def direct_requirements() -> Iterator[Requirement]:
    """Yield what pyproject.toml asks for, extras and groups included."""
    project = PYPROJECT["project"]
    parts = [project["dependencies"], *project["optional-dependencies"].values()]
    for part in [*parts, *PYPROJECT["dependency-groups"].values(), PYPROJECT["build-system"]["requires"]]:
        yield from map(Requirement, part)


def asked_of_the_index(command: list[str]) -> None:
    """Run a command that reads the package index. Skip without one, but not where everything must be tested."""
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"UV_NO_PROGRESS": "1"})
    if run.returncode and "Failed to fetch" in run.stderr and not os.environ.get("CI"):
        pytest.skip(f"the package index does not answer, and the lock's hashes name no files: {run.stderr[-200:]}")
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each package the names of its wheels whose hash is in the lock, by what the index says."""
    described = tmp_path_factory.mktemp("lock") / "pylock.toml"
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--universal", "--no-deps"]
    command += ["--python-version", "3.11", "--format", "pylock.toml", "--output-file", str(described)]
    asked_of_the_index([*command, str(ROOT / "requirements.lock")])
    packages = tomllib.loads(described.read_text(encoding="utf-8"))["packages"]
    hashes = set(re.findall("sha256:([0-9a-f]{64})", LOCK))
    return {
        package["name"]: [
            wheel["url"].rpartition("/")[2].replace("%2B", "+")
            for wheel in package.get("wheels", [])
            if wheel["hashes"]["sha256"] in hashes
        ]
        for package in packages
    }


@pytest.mark.parametrize("python", PYTHONS, ids=lambda version: f"Python {version[0]}.{version[1]}")
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_package_has_a_wheel_by_hash(
    platform: str, python: tuple[int, int], wheels: dict[str, list[str]]
) -> None:
    system, machine, names = PLATFORMS[platform]
    names = [*names, *(f"{OLD_NAMES[name]}_{machine}" for name in names if name in OLD_NAMES)]
    if system == "linux":
        names += [f"manylinux2014_{machine}", f"linux_{machine}"]
    usable: set[Tag] = {*cpython_tags(python, platforms=names), *compatible_tags(python, platforms=names)}
    here = {
        "sys_platform": system,
        "platform_machine": machine,
        "python_version": f"{python[0]}.{python[1]}",
        "python_full_version": f"{python[0]}.{python[1]}.5",
    }
    applying = {
        requirement.name
        for line in re.findall(r"^([\w.-]+==[^\\\n]+)", LOCK, re.MULTILINE)
        if (requirement := Requirement(line)).marker is None or requirement.marker.evaluate(here)
    }
    assert len(applying) > 250
    assert ("tensorflow-cpu" in applying) == (platform == "Linux x86-64")
    without = {name for name in applying if not any(parse_wheel_filename(wheel)[3] & usable for wheel in wheels[name])}
    assert without == WITHOUT_WHEEL


def test_the_lock_is_in_line_with_the_project_file(tmp_path: Path) -> None:
    project = tmp_path / PROJECT_NAME
    project.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, project)
    (project / ".venv").symlink_to(Path(sys.executable).parent.parent)
    asked_of_the_index(["make", "--directory", str(project), "--assume-old=.venv/bin/uv", "lock"])
    assert pins((project / "requirements.lock").read_text(encoding="utf-8")) == pins(LOCK)


def test_the_lock_has_hashes_and_no_index_addresses() -> None:
    blocks = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins(LOCK)) > 300
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in LOCK


def test_every_direct_dependency_is_in_the_lock_at_its_version() -> None:
    locked = pins(LOCK)
    for requirement in direct_requirements():
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement
