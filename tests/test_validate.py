import hashlib
import html
import json
import re
import sys

import pandas as pd
import pytest
import yaml
from drawn_data import changed, drawn_files, ingest_files, params_for
from page_reader import Page

from pipeline import validate
from pipeline.data.data_context import RESULTS
from pipeline.data.images import INVENTORY_FILE
from pipeline.errors import RefusedError
from pipeline.stage import run_main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six images of each label and a broken file, ingested."""
    files = drawn_files(n=6) | {"crack/broken.jpg": b"no image\n"}
    return ingest_files(files, tmp_path_factory.mktemp("validate"))


@pytest.fixture
def places(tmp_path):
    return {
        "context": tmp_path / "gx",
        "report": tmp_path / "reports" / "walls.json",
        "page": tmp_path / "reports" / "walls.html",
        "result": tmp_path / "validated" / "walls.json",
    }


def params_with(**contract):
    return params_for(["walls"], contract={"min_decodable_share": 0.9} | contract)


def test_a_passed_contract_writes_report_page_and_result(dataset, places, caplog):
    caplog.set_level("INFO", "pipeline")
    validate.run(params_with(), "walls", dataset, **places)
    assert json.loads(places["result"].read_text()) == {"dataset": "walls", "success": True}
    report = json.loads(places["report"].read_text())
    assert (report["dataset"], report["success"]) == ("walls", True)
    assert report["facts"]["images"] == "12"
    assert len(report["rules"]) == 16
    assert len(list((places["context"] / RESULTS).glob("walls/*/*/*.json"))) == 1
    assert all(rule["success"] for rule in report["rules"])
    assert "crack/broken.jpg" in Page(places["page"].read_text()).text
    assert caplog.messages == ["walls: contract passed"]


def test_a_broken_rule_is_refused_with_what_was_observed_and_the_paths(dataset, places):
    paths = [f"    crack/{n:04}.jpg" for n in range(1, 7)] + [f"    intact/{n:04}.jpg" for n in range(1, 5)]
    lines = ["walls breaks its contract:"]
    for side in ("height", "width"):
        lines += [
            f"  broken: the {side} of every image is between 65 and 4,096 px. Observed: 12 images that break the rule"
        ]
        lines += paths
    lines += [
        "Correct the data, or change `contract` in params.yaml. See ",
    ]
    with pytest.raises(RefusedError, match="^" + re.escape("\n".join(lines) + str(places["page"]))) as caught:
        validate.run(params_with(min_size_px=65), "walls", dataset, **places)
    assert caught.value.exit_code == 3
    report = json.loads(places["report"].read_text())
    assert report["success"] is False
    broken = [rule for rule in report["rules"] if not rule["success"]]
    assert [(rule["severity"], len(rule["paths"])) for rule in broken] == [("fail", 10)] * 2
    assert "the height of every image is between 65 and 4,096 px" in Page(places["page"].read_text()).text
    assert not places["result"].exists()


def test_every_broken_rule_is_named(dataset, places):
    with pytest.raises(RefusedError, match="at least 7 images are labelled crack") as caught:
        validate.run(params_with(min_images_per_label=7), "walls", dataset, **places)
    assert "at least 7 images are labelled intact. Observed: 6 images" in str(caught.value)


def test_a_warning_is_reported_and_fails_nothing(places, tmp_path, caplog):
    files = drawn_files(n=5, mirrored=1)
    copied = ingest_files(files, tmp_path)
    caplog.clear()
    validate.run(params_with(), "walls", copied, **places)
    assert places["result"].exists()
    report = json.loads(places["report"].read_text())
    (broken,) = [rule for rule in report["rules"] if not rule["success"]]
    assert (broken["severity"], report["success"]) == ("warn", True)
    text = "at most 5.0 % of the images are copies of others"
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == [f"walls: warning: {text}. Observed: 16.67 %"]
    assert text in Page(places["page"].read_text()).text


def test_photos_must_be_known_where_the_data_set_has_a_pattern(places, tmp_path):
    files = drawn_files(n=5) | {"intact/broken.jpg": b"no image\n"}
    named = params_for(["walls"], contract={"min_decodable_share": 0.9}, photo_pattern=r"(\d{4})\.jpg")
    whole = ingest_files(files, tmp_path / "whole", photo_pattern=r"(\d{4})\.jpg")
    validate.run(named, "walls", whole, **places)
    some = ingest_files(files, tmp_path / "some", photo_pattern=r"(\d{3}[1-4])\.jpg")
    with pytest.raises(
        RefusedError, match=r"the photo of every image is known\. Observed: 2 images .*\n    crack/0005"
    ):
        validate.run(named, "walls", some, **places)


def test_a_failed_contract_deletes_the_result_of_an_earlier_run(dataset, places):
    validate.run(params_with(), "walls", dataset, **places)
    assert places["result"].exists()
    with pytest.raises(RefusedError, match="breaks its contract"):
        validate.run(params_with(max_size_px=63), "walls", dataset, **places)
    assert not places["result"].exists()


def test_a_run_that_fails_halfway_leaves_no_result_of_an_earlier_one(places, tmp_path):
    places["result"].parent.mkdir()
    places["result"].write_text('{"success": true}')
    with pytest.raises(FileNotFoundError, match="nowhere"):
        validate.run(params_with(), "walls", tmp_path / "nowhere", **places)
    assert not places["result"].exists()


@pytest.mark.parametrize(("n_needed", "code"), [(6, 0), (7, 3)])
def test_the_command_line_exits_with_0_if_passed_and_3_if_failed(
    dataset, places, tmp_path, monkeypatch, capsys, n_needed, code
):
    params = yaml.safe_load(params_with(min_images_per_label=n_needed).model_dump_json(by_alias=True))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    paths = {"params": tmp_path / "params.yaml", "dataset": dataset, **places}
    flags = [part for flag, path in paths.items() for part in (f"--{flag}", str(path))]
    monkeypatch.setattr(sys, "argv", ["validate", "--name", "walls", *flags])
    if code:
        with pytest.raises(SystemExit, match=f"^{code}$"):
            run_main(validate.main)
        error = capsys.readouterr().err
        assert "error: walls breaks its contract:\n  broken: at least 7 images are labelled crack." in error
        assert "Traceback" not in error
    else:
        run_main(validate.main)
        assert "error" not in capsys.readouterr().err
    assert places["result"].exists() == (code == 0)
    assert places["report"].exists()


def test_the_inventory_that_is_checked_is_the_one_of_the_folder(dataset, places):
    n_images = len(pd.read_parquet(dataset / INVENTORY_FILE))
    validate.run(params_with(), "walls", dataset, **places)
    assert json.loads(places["report"].read_text())["facts"]["images"] == str(n_images)


def test_a_mirrored_copy_with_the_other_label_is_refused_and_the_page_says_what_to_write(tmp_path, places):
    originals = drawn_files(n=6)
    files = originals | {"intact/copy.jpg": changed(originals["crack/0001.jpg"])}
    folder = ingest_files(files, tmp_path)
    lines = "no image has a copy with the other label. Observed: 2 images that break the rule\n"
    with pytest.raises(RefusedError, match=re.escape(lines + "    crack/0001.jpg\n    intact/copy.jpg\n")):
        validate.run(params_with(), "walls", folder, **places)
    page = places["page"].read_text()
    labels, pairs = (yaml.safe_load(html.unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL))
    params = params_for(["walls"], copies={"min_correlation": 0.55} | pairs["split"]["copies"])
    validate.run(params, "walls", folder, **places)
    corrected = labels["datasets"]["walls"]["corrected_labels"]
    ids = {hashlib.sha256(files[path]).hexdigest()[:16]: path for path in ("crack/0001.jpg", "intact/copy.jpg")}
    assert {ids[name]: label for name, label in corrected.items()} == {
        "crack/0001.jpg": "intact",
        "intact/copy.jpg": "crack",
    }
