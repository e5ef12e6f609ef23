import json
import multiprocessing
import os
import re
import signal

import great_expectations as gx
import pandas as pd
import pytest

from pipeline.data.contract import check
from pipeline.data.data_context import RESULTS, build_data_docs, open_context
from pipeline.errors import CracksError

FORK = multiprocessing.get_context("fork")  # the library is imported already
FILES = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "label": ["crack", "rust"], "width": [64, 64]})


def rules(low=1):
    return [
        gx.expectations.ExpectColumnValuesToBeBetween(column="width", min_value=low, notes="wide enough"),
        gx.expectations.ExpectColumnValuesToBeInSet(column="label", value_set=["crack", "intact"], notes="labels"),
    ]


def results_in(folder, name="*"):
    return sorted((folder / RESULTS).glob(f"{name}/*/*/*.json"))


def test_great_expectations_itself_finds_suite_checkpoint_and_every_result(tmp_path):
    for name in ("walls", "decks"):
        check(FILES, rules(), name, tmp_path / "gx")
    check(FILES, rules(low=65), "walls", tmp_path / "gx")
    context = gx.get_context(mode="file", context_root_dir=tmp_path / "gx")
    assert {suite.name for suite in context.suites.all()} == {"walls", "decks"}
    assert context.suites.get("walls").expectations[0].min_value == 65
    again = context.checkpoints.get("decks").run(batch_parameters={"dataframe": FILES})
    assert not again.success
    found = [json.loads(path.read_text()) for path in results_in(tmp_path / "gx", "walls")]
    assert [[one["success"] for one in result["results"]] for result in found] == [[True, False], [False, False]]
    assert found[0]["results"][1]["result"]["partial_unexpected_index_list"] == [{"label": "rust", "path": "b.jpg"}]


def test_a_validation_without_a_context_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [rule.paths for rule in check(FILES, rules())] == [(), ("b.jpg",)]
    assert list(tmp_path.iterdir()) == []


def test_validations_at_the_same_time_keep_all_results(tmp_path):
    processes = [
        FORK.Process(target=check, args=(FILES, rules(), f"set-{number % 2}", tmp_path / "gx")) for number in range(6)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert [len(results_in(tmp_path / "gx", f"set-{number}")) for number in range(2)] == [3, 3]
    assert {one.name for one in gx.get_context(context_root_dir=tmp_path / "gx").checkpoints.all()} == {
        "set-0",
        "set-1",
    }


def killed_while_writing(folder):
    with open_context(folder):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_validation_breaks_neither_the_next_one_nor_the_history(tmp_path):
    folder = tmp_path / "gx"
    check(FILES, rules(), "walls", folder)
    killed = FORK.Process(target=killed_while_writing, args=(folder,))
    killed.start()
    killed.join()
    (complete,) = results_in(folder)
    half_written = complete.with_name("half.json")
    for path in (half_written, *(path for path in folder.rglob("*") if path.is_file())):
        if path not in (complete, folder / ".lock"):
            path.write_bytes(complete.read_bytes()[:100])
    check(FILES, rules(), "walls", folder)
    assert complete.exists()
    assert not half_written.exists()
    assert len(results_in(folder)) == 2
    assert gx.get_context(context_root_dir=folder).checkpoints.get("walls").name == "walls"


def test_the_data_docs_show_every_rule_in_words_and_lead_to_the_page_with_pictures(tmp_path):
    folder = tmp_path / "my cracks" / "data" / "gx"
    check(FILES, rules(), "walls", folder)
    site = folder / "uncommitted" / "data_docs" / "local_site"
    assert build_data_docs(folder) == (site / "index.html").as_uri()
    assert (site / "index.html").exists()
    suite = site / "expectations" / "walls.html"
    html = suite.read_text(encoding="utf-8")
    assert "wide enough" in html
    (link,) = re.findall(r'href="([^"]*validation-walls[^"]*)"', html)
    assert (suite.parent / link).resolve() == tmp_path / "my cracks" / "reports" / "validation-walls.html"
    assert len(list(site.glob("validations/walls/*/*/*.html"))) == 1


def test_data_docs_of_nothing_are_refused_with_the_way_to_get_some(tmp_path):
    with pytest.raises(CracksError, match=r"no validation result in .*gx yet\. Run `dvc repro"):
        build_data_docs(tmp_path / "gx")
    assert not (tmp_path / "gx").exists()


def test_a_context_on_disk_prints_logs_and_reports_nothing(tmp_path, capfd, caplog):
    check(FILES, rules(), "walls", tmp_path / "gx")
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert "analytics_enabled: false" in (tmp_path / "gx" / "great_expectations.yml").read_text()
