import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from test_batches import BATCH, FIRST, INBOX, SITE, drop, write_zip

from pipeline import cli
from pipeline.inbox.batches import mark_trained


@pytest.fixture
def cracks(tmp_path, monkeypatch):
    """A function that runs `cracks` in a project with a data set that takes batches; it returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    values = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
    values["datasets"] = {"site": {"source": str(SITE)}}
    values["split"] |= {"train_on": ["site"]}
    values["retrain"] |= {"dataset": "site"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    (tmp_path / SITE).mkdir(parents=True)
    (tmp_path / INBOX).mkdir()
    write_zip(tmp_path / SITE / "0000-first.zip", FIRST)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cracks", *arguments])
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code
        return 0

    return run


def test_batches_are_taken_listed_and_removed_by_hand(cracks, tmp_path, capsys):
    drop(tmp_path, BATCH)
    drop(tmp_path, {"crack/a.jpg": b"no image"}, "bad.zip")
    drop(tmp_path, FIRST, "late.zip", marker=False)
    assert cracks("batches", "take") == 3
    assert re.search(r"error: bad\.zip was set aside in .*refused: .*contains no image", capsys.readouterr().err)
    mark_trained(tmp_path, "7")
    assert cracks("batches", "remove", "b.zip", "--reason", "blurred") == 0
    assert "0001-b.zip is removed from site" in capsys.readouterr().out
    (tmp_path / INBOX / "south.7z").touch()
    (tmp_path / INBOX / "east").mkdir()
    (tmp_path / INBOX / "README.md").touch()
    assert cracks("batches") == 0
    taken, waiting, refused, *others = capsys.readouterr().out.splitlines()
    today = datetime.now(UTC).date().isoformat()[:4]
    assert re.fullmatch(rf"{today}-\S+  0001-b\.zip  10 images, by \S+; removed {today}-\S+ by \S+: blurred", taken)
    assert waiting == "waiting: data/inbox/late.zip"
    assert re.fullmatch(r"refused: data/inbox/refused/[0-9a-f]{8}-bad\.zip", refused)
    assert others == [f"not taken, as it is no archive: data/inbox/{name}" for name in ("east", "south.7z")]


def test_without_batches_the_list_says_so(cracks, capsys):
    assert cracks("batches") == 0
    assert capsys.readouterr().out == "No batch has been taken yet.\n"
    assert cracks("batches", "take") == 0
    assert "No batch is waiting in data/inbox/" in capsys.readouterr().out


def test_a_removal_needs_a_reason_and_a_batch(cracks, capsys):
    assert cracks("batches", "remove", "b.zip") == 2
    assert cracks("batches", "remove", "b.zip", "--reason", "blurred") == 2
    assert "0 batches are called 'b.zip'" in capsys.readouterr().err
