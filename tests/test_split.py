import json
import re
import sys

import pandas as pd
import pytest
import yaml
from drawn_data import changed, drawn_files, ingest_files, params_for, wall_with_a_hole
from page_reader import Page

from pipeline import split
from pipeline.data.contract import NONE_DOUBTFUL
from pipeline.data.data_context import RESULTS
from pipeline.data.group_split import SIDES, build_manifest
from pipeline.data.images import INVENTORY_FILE
from pipeline.errors import CracksError, RefusedError
from pipeline.split import read_inventories
from pipeline.stage import run_main


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """Two data sets: walls with copies, bridges, which shares nothing with it."""
    folder = tmp_path_factory.mktemp("split")
    for name, seed in (("walls", 1), ("bridges", 2)):
        files = drawn_files(n=20 if name == "walls" else 4, seed=seed, mirrored=4)
        ingest_files(files, folder / name).rename(folder / f"{name}-dataset")
    return folder


@pytest.fixture
def places(ingested, tmp_path):
    """The paths of the stage, with both data sets found green."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "validated").mkdir()
    for name in ("walls", "bridges"):
        (tmp_path / "datasets" / name).symlink_to(ingested / f"{name}-dataset")
        (tmp_path / "validated" / f"{name}.json").write_text('{"success": true}')
    return {
        "datasets": tmp_path / "datasets",
        "validated": tmp_path / "validated",
        "manifest": tmp_path / "out" / "manifest.parquet",
        "summary": tmp_path / "out" / "split.json",
        "context": tmp_path / "gx",
        "report": tmp_path / "out" / "contract.json",
        "page": tmp_path / "out" / "contract.html",
    }


@pytest.fixture
def params():
    return params_for(["bridges", "walls"], train_on=["walls"])


def test_inventories_are_concatenated_and_rows_count_within_each(places):
    inventory = read_inventories(places["datasets"], ["bridges", "walls"])
    assert inventory["dataset"].tolist() == ["bridges"] * 16 + ["walls"] * 48
    assert inventory["row"].tolist() == [*range(16), *range(48)]
    assert inventory.index.tolist() == list(range(64))


def test_a_split_that_passes_writes_manifest_summary_report_and_page(places, params, caplog):
    caplog.set_level("INFO", "pipeline")
    split.run(params, **places)
    assert len(list((places["context"] / RESULTS).glob("split/*/*/*.json"))) == 1
    manifest = pd.read_parquet(places["manifest"])
    assert manifest["dataset"].value_counts().to_dict() == {"walls": 48, "bridges": 16}
    assert (manifest["split"] == "external").equals(manifest["dataset"] == "bridges")
    walls = manifest[manifest["dataset"] == "walls"]
    assert set(walls["split"]) == set(SIDES)
    assert (walls["group"].value_counts() == 2).sum() == 8
    summary = json.loads(places["summary"].read_text())
    assert summary == {"n_images": 48, "n_groups": 40, "n_copies": 8, "n_excluded": 0, "leaks": 0}
    report = json.loads(places["report"].read_text())
    assert (report["dataset"], report["success"], len(report["rules"])) == ("split", True, 6)
    assert report["facts"]["external images"] == "16"
    page = Page(places["page"].read_text())
    assert "no group, and no photo, is on two sides of the split" in page.text
    assert "split: contract passed" in caplog.messages


def test_a_split_that_leaks_is_refused_with_rule_and_paths_and_no_manifest(places, params, monkeypatch):
    def tampered(images, pairs, params):
        manifest = build_manifest(images, pairs, params)
        copy = pairs["second"].iloc[-1]
        elsewhere = next(side for side in SIDES if side != manifest["split"][copy])
        manifest.loc[copy, "split"] = elsewhere
        return manifest

    monkeypatch.setattr(split, "build_manifest", tampered)
    lines = "split breaks its contract:\n  broken: no group, and no photo, is on two sides of the split. Observed: "
    with pytest.raises(RefusedError, match=f"^{re.escape(lines)}2 images that break the rule\n    .*jpg\n") as caught:
        split.run(params, **places)
    assert caught.value.exit_code == 3
    assert str(places["page"]) in str(caught.value)
    assert not places["manifest"].exists()
    assert not places["summary"].exists()
    report = json.loads(places["report"].read_text())
    (broken,) = [rule for rule in report["rules"] if not rule["success"]]
    assert all(path in str(caught.value) for path in broken["paths"])
    assert len(broken["paths"]) == 2
    assert report["success"] is False
    assert len(Page(places["page"].read_text()).all("img")) == 2


def test_a_copy_in_an_external_test_set_is_refused(places, params, tmp_path):
    files = drawn_files(n=20, seed=1)
    shared = {
        "crack/shared.jpg": changed(files["crack/0003.jpg"]),
        "intact/1.jpg": drawn_files(1, 9)["intact/0001.jpg"],
    }
    (places["datasets"] / "bridges").unlink()
    ingest_files(shared, tmp_path / "shared").rename(places["datasets"] / "bridges")
    with pytest.raises(
        RefusedError, match=r"no external image has a copy(.|\n)*crack/shared\.jpg(.|\n)*crack/0003\.jpg"
    ):
        split.run(params, **places)
    assert not places["manifest"].exists()


def test_a_doubtful_copy_in_an_external_test_set_is_a_warning_with_pictures(places, params, tmp_path, caplog):
    walls, bridges = ({"crack/1.png": wall_with_a_hole(seed, shared=0.45)} for seed in (1, 2))
    for name, files in (("walls", drawn_files(n=20, seed=1) | walls), ("bridges", drawn_files(n=4, seed=2) | bridges)):
        (places["datasets"] / name).unlink()
        ingest_files(files, tmp_path / name).rename(places["datasets"] / name)
    copies = params.split.copies.model_copy(update={"not_copies": (("0" * 16, "1" * 16),)})
    split.run(params.model_copy(update={"split": params.split.model_copy(update={"copies": copies})}), **places)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"split.copies.not_copies names images that no data set has: {'0' * 16}, {'1' * 16}",
        f"split: warning: {NONE_DOUBTFUL}. Observed: 2 images that break the rule",
    ]
    section = Page(places["page"].read_text().partition('<section id="doubtful">')[2].partition("</section>")[0])
    assert "1 pair of images that may be copies" in section.text
    assert [image["alt"] for image in section.all("img")] == ["crack: bridges/crack/1.png", "crack: walls/crack/1.png"]


def test_the_command_line_exits_with_3_where_a_contract_is_missing(places, tmp_path, monkeypatch, capsys):
    params = yaml.safe_load(params_for(["bridges", "walls"], train_on=["walls"]).model_dump_json(by_alias=True))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (places["validated"] / "bridges.json").unlink()
    arguments = [part for name, path in places.items() for part in (f"--{name}", str(path))]
    monkeypatch.setattr(sys, "argv", ["split", "--params", str(tmp_path / "params.yaml"), *arguments])
    with pytest.raises(SystemExit, match=r"^3$"):
        run_main(split.main)
    assert "Data set bridges has not passed its contract. Run `dvc repro validate@bridges`" in capsys.readouterr().err


@pytest.mark.parametrize("result", [None, '{"success": false}'], ids=["missing", "failed"])
def test_a_data_set_without_a_passed_contract_is_refused_and_nothing_is_written(places, params, result):
    path = places["validated"] / "bridges.json"
    path.unlink()
    if result:
        path.write_text(result)
    with pytest.raises(RefusedError, match=r"Data set bridges has not passed its contract\. Run `dvc repro"):
        split.run(params, **places)
    assert not places["manifest"].parent.exists()


def test_a_split_without_a_test_side_is_an_error_and_nothing_is_written(places):
    params = params_for(["walls"], fractions={"train": 0.5, "validation": 0.5, "test": 0})
    with pytest.raises(CracksError, match="The test side has no images"):
        split.run(params, **places)
    assert not places["manifest"].parent.exists()


def test_a_folder_that_is_not_in_params_is_ignored(places):
    (places["datasets"] / "stale").mkdir()
    (places["datasets"] / "stale" / INVENTORY_FILE).write_text("not read")
    split.run(params_for(["walls"]), **places)
    assert set(pd.read_parquet(places["manifest"])["dataset"]) == {"walls"}
