"""The pipeline end to end on real concrete, where CRACKS_REAL_DATA names the folder with the archives."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

pytestmark = pytest.mark.slow(120)


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("CRACKS_REAL_DATA")
    if not folder:
        pytest.skip("CRACKS_REAL_DATA is not set: no real images here")
    return Path(folder).absolute()


def some_of(archive: Path, target: Path, keep: Callable[[int, str], bool]) -> None:
    """Write those files of `archive` into `target` that `keep` says yes to, by position and name."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as chosen:
        for position, name in enumerate(sorted(source.namelist())):
            if keep(position, name):
                chosen.writestr(name, source.read(name))


def test_real_concrete_leads_to_a_challenger_that_is_tested_without_leaks(untouched: Project, real_data: Path) -> None:
    incoming = untouched.root / "data" / "incoming"
    # An eighth of the images, in runs: about fifty of them are copies of others.
    some_of(real_data / "metu-subset.zip", incoming / "metu.zip", lambda position, _: position // 40 % 8 == 0)
    some_of(real_data / "sdnet-subset.zip", incoming / "sdnet.zip", lambda _, name: "/7029-" in name or "/101-" in name)
    shutil.copy(untouched.root / "examples" / "params.metu-sdnet.yaml", untouched.root / "params.yaml")

    def make_quick(params: dict[str, Any]) -> None:
        params["contract"]["min_images_per_label"] = 30
        params["backbones"]["efficientnet-lite0"]["image_size_px"] = 128
        for kind in ("mosaics", "hairline_mosaics"):
            params["candidates"]["mosaics-lite0"][kind]["n_images"] = 120

    untouched.edit_params(make_quick)
    untouched.repro()
    metrics = untouched.json("reports/scores.json")
    assert metrics["demo"] is False
    assert metrics["split"]["leaks"] == 0
    assert metrics["split"]["n_copies"] > 30
    assert metrics["test"]["f1"] >= 0.98
    assert metrics["external"]["sdnet"]["auroc"] > 0.6
    assert untouched.model_versions() == [("1", "challenger")]
