import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline import validate
from pipeline.errors import RefusedError
from pipeline.images import INVENTORY_FILE, QUARANTINE_FILE
from pipeline.params import Contract
from pipeline.stage import run_main
from pipeline.validate import check, files_table

ROOT = Path(__file__).parents[1]
CONTRACT = Contract(
    min_images_per_label=4, min_decodable_share=0.9, min_minority_share=0.25, min_size_px=64, max_size_px=512
)
NOTHING_IN_QUARANTINE = pd.DataFrame({"path": [], "reason": []}, dtype=str)


def inventory(n_crack=10, n_intact=10, **columns):
    """The inventory of images of 64 x 512 px, both just within the contract."""
    n = n_crack + n_intact
    images = pd.DataFrame(
        {
            "path": [f"{number:05}.jpg" for number in range(n)],
            "label": ["crack"] * n_crack + ["intact"] * n_intact,
            "height": 64,
            "width": 512,
        }
    )
    return images.assign(**columns)


def quarantine(n):
    return pd.DataFrame({"path": [f"broken-{number}.jpg" for number in range(n)], "reason": "not an image"})


def first_is(column, value):
    images = inventory()
    images.loc[0, column] = value
    return images


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the stage on an inventory and a quarantine; `run.report`, `run.receipt` are paths."""

    def run(images, broken=NOTHING_IN_QUARANTINE, contract=CONTRACT):
        dataset = tmp_path / "datasets" / "walls"
        dataset.mkdir(parents=True, exist_ok=True)
        images.to_parquet(dataset / INVENTORY_FILE)
        broken.to_csv(dataset / QUARANTINE_FILE, index=False)
        validate.run("walls", contract, dataset, run.report, run.receipt)

    run.report = tmp_path / "reports" / "walls.json"
    run.receipt = tmp_path / "validated" / "walls.json"
    return run


def test_a_green_contract_writes_report_and_receipt(run):
    run(inventory(), quarantine(2))
    assert json.loads(run.receipt.read_text()) == {"dataset": "walls", "success": True}
    report = json.loads(run.report.read_text())
    assert report["dataset"] == "walls"
    assert report["success"] is True
    assert [rule["success"] for rule in report["rules"]] == [True] * 8
    assert report["quarantine"] == quarantine(2).to_dict("records")


# The images that break one rule and no other, the rule in words, and what is observed.
BROKEN = {
    "another label": (
        first_is("label", "rust"),
        quarantine(0),
        "both labels are there, and no other",
        "missing [], unexpected ['rust']",
        [],
    ),
    "few cracks": (inventory(3, 9), quarantine(0), "at least 4 images are labelled crack", 3.0, []),
    "few intact": (inventory(9, 3), quarantine(0), "at least 4 images are labelled intact", 3.0, []),
    "cracks rare": (inventory(4, 16), quarantine(0), "the rarer label makes up at least 25.0%", 0.2, []),
    "intact rare": (inventory(16, 4), quarantine(0), "the rarer label makes up at least 25.0%", 0.8, []),
    "much broken": (
        inventory(),
        quarantine(5),
        "at least 90.0% of the files are images that can be read",
        0.8,
        [],
    ),
    "too low": (
        first_is("height", 63),
        quarantine(0),
        "no side is shorter than 64 px",
        "1 files that break the rule",
        ["00000.jpg"],
    ),
    "too wide": (
        first_is("width", 513),
        quarantine(0),
        "no side is longer than 512 px",
        "1 files that break the rule",
        ["00000.jpg"],
    ),
    "path twice": (
        first_is("path", "00001.jpg"),
        quarantine(0),
        "every path occurs once",
        "2 files that break the rule",
        ["00001.jpg", "00001.jpg"],
    ),
    "path in quarantine, too": (
        first_is("path", "broken-0.jpg"),
        quarantine(1),
        "every path occurs once",
        "2 files that break the rule",
        ["broken-0.jpg", "broken-0.jpg"],
    ),
}


@pytest.mark.parametrize(("images", "broken", "rule", "observed", "paths"), BROKEN.values(), ids=BROKEN.keys())
def test_each_rule_alone_turns_the_contract_red(run, images, broken, rule, observed, paths):
    lines = [f"  not so: {rule}. Observed: {observed}", *(f"    {path}" for path in paths), "Mend the data"]
    with pytest.raises(RefusedError, match=r"^Data set walls breaks its contract:\n" + re.escape("\n".join(lines))):
        run(images, broken)
    report = json.loads(run.report.read_text())
    assert report["success"] is False
    red = [row for row in report["rules"] if not row["success"]]
    assert red == [{"rule": rule, "success": False, "observed": observed, "paths": paths}]
    assert not run.receipt.exists()


def test_the_rules_that_can_turn_red_are_all_rules():
    rules = {row["rule"] for row in check(files_table(inventory(), NOTHING_IN_QUARANTINE), CONTRACT)}
    assert rules == {rule for _, _, rule, _, _ in BROKEN.values()}


@pytest.mark.parametrize(
    "images",
    [inventory(4, 12), inventory(12, 4), inventory(width=64), inventory(height=512)],
    ids=["a quarter cracked", "a quarter intact", "smallest", "largest"],
)
def test_what_is_exactly_at_the_limit_is_green(run, images):
    run(images)
    assert run.receipt.exists()


def test_a_contract_that_asks_for_balance_can_be_met(run):
    run(inventory(), contract=CONTRACT.model_copy(update={"min_minority_share": 0.5}))
    assert run.receipt.exists()


def test_a_label_that_is_missing_altogether_is_named(run):
    match = re.escape("both labels are there, and no other. Observed: missing ['crack'], unexpected []")
    with pytest.raises(RefusedError, match=match):
        run(inventory(0, 10))


def test_a_red_contract_shows_ten_offenders_at_most(run):
    with pytest.raises(RefusedError, match="20 files that break the rule") as caught:
        run(inventory(height=16))
    assert str(caught.value).count(".jpg") == 10


def test_a_red_contract_takes_the_receipt_of_a_former_run_away(run):
    run(inventory())
    with pytest.raises(RefusedError, match="breaks its contract"):
        run(inventory(1, 10))
    assert not run.receipt.exists()


def test_a_file_in_quarantine_may_have_a_name_that_pandas_takes_for_missing(run):
    run(inventory(), pd.DataFrame({"path": ["NA"], "reason": ["not an image"]}))
    assert json.loads(run.report.read_text())["quarantine"] == [{"path": "NA", "reason": "not an image"}]


def test_the_table_has_a_row_for_each_file_found():
    images = inventory(2, 1, label=["crack", "rust", "intact"], height=[70, 64, 90], width=[80, 64, 60])
    table = files_table(images, quarantine(1))
    expected = pd.DataFrame(
        {
            "path": ["00000.jpg", "00001.jpg", "00002.jpg", "broken-0.jpg"],
            "label": ["crack", "rust", "intact", None],
            "decodable": [1, 1, 1, 0],
            "is_crack": [1, 0, 0, None],
            "is_intact": [0, 0, 1, None],
            "shorter_side_px": [70, 64, 60, None],
            "longer_side_px": [80, 64, 90, None],
        }
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


def test_great_expectations_prints_nothing(capfd):
    check(files_table(inventory(1, 10), quarantine(3)), CONTRACT)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def command_line(run, tmp_path, monkeypatch):
    """Put a valid command line in place for the stage."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["contract"] = CONTRACT.model_dump()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    paths = {"params": tmp_path / "params.yaml", "dataset": tmp_path / "datasets" / "walls"}
    paths |= {"report": run.report, "receipt": run.receipt}
    flags = [part for flag, path in paths.items() for part in (f"--{flag}", str(path))]
    monkeypatch.setattr(sys, "argv", ["validate", "--name", "walls", *flags])


@pytest.mark.usefixtures("command_line")
def test_a_red_contract_ends_the_stage_with_exit_code_3(run, capsys):
    with pytest.raises(RefusedError, match="breaks its contract"):
        run(inventory(1, 10))
    run.report.unlink()
    with pytest.raises(SystemExit, match=r"^3$"):
        run_main(validate.main)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: Data set walls breaks its contract:\n  not so: at least 4 images are labelled crack.")
    assert "Traceback" not in err
    assert run.report.exists()
    assert not run.receipt.exists()


@pytest.mark.usefixtures("command_line")
def test_a_green_contract_ends_the_stage_quietly(run, capsys):
    run(inventory())
    run.receipt.unlink()
    run_main(validate.main)
    assert capsys.readouterr() == ("", "")
    assert run.receipt.exists()
