import csv
import hashlib
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from archive_writer import write_zip
from drawn_data import changed, drawn_files, in_process

from pipeline.data import dataset_reader
from pipeline.data.dataset_reader import pack_dataset
from pipeline.errors import CracksError
from pipeline.inbox import batches
from pipeline.inbox.batches import (
    RECORD,
    Refused,
    Taken,
    complete_interrupted,
    mark_trained,
    next_file_name,
    read_record,
    remove,
    take_all,
    untrained,
    waiting,
    write_record,
)
from pipeline.params import Dataset, Params
from pipeline.project import INBOX

ROOT = Path(__file__).parents[1]
SITE = Path("data/incoming/site")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
FILES = drawn_files(n=20, seed=3)
BATCH = {path: content for path, content in FILES.items() if path[-7:-4] > "015"}  # five of each label
FIRST = {path: content for path, content in FILES.items() if path not in BATCH}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(dataset_reader, "ProcessPoolExecutor", in_process)


@pytest.fixture
def params():
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["datasets"] = {"site": {"source": str(SITE)}}
    values["contract"] |= {"min_images_per_label": 10}
    values["split"] |= {"train_on": ["site"]}
    values["retrain"] |= {"dataset": "site"}
    return Params.model_validate(values)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose data set has a first batch, which is ingested."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / SITE).mkdir(parents=True)
    (tmp_path / INBOX).mkdir()
    write_zip(tmp_path / SITE / "0000-first.zip", FIRST)
    return tmp_path


@pytest.fixture
def ingested(root, params):
    pack_dataset(Dataset(source=root / SITE), params.ingest, root / "data" / "datasets" / "site")
    return root


def drop(root, files, name="b.zip", *, marker=True):
    write_zip(root / INBOX / name, files)
    if marker:
        (root / INBOX / f"{name}.done").touch()
    return root / INBOX / name


def take(root, params):
    return take_all(root, params, now=NOW, by="test")


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_sound_batch_is_taken_last_into_the_data_set_with_a_record(ingested, params):
    archive = drop(ingested, BATCH)
    content = archive.read_bytes()
    (taken,) = take(ingested, params)
    sha256 = hashlib.sha256(content).hexdigest()
    assert taken == Taken("b.zip", "0001-b.zip", "site", sha256, 10, "2030-01-01T00:00:00+00:00", "test")
    assert (ingested / SITE / "0001-b.zip").read_bytes() == content
    assert below(ingested / SITE) == ["0000-first.zip", "0001-b.zip"]
    assert below(ingested / INBOX) == []
    assert read_record(ingested) == [taken]
    assert take(ingested, params) == []


def test_an_archive_is_whole_with_its_marker_or_when_it_has_settled(root):
    settle = timedelta(minutes=10)
    archive = drop(root, BATCH, marker=False)
    changed_at = datetime.fromtimestamp(archive.stat().st_ctime, UTC)
    assert waiting(root, settle, changed_at + timedelta(minutes=9)) == []
    assert waiting(root, settle, changed_at + timedelta(minutes=11)) == [archive]
    os.utime(archive, (0, 0))  # as `cp -p` of an old file: it came just now all the same
    assert waiting(root, settle, changed_at + timedelta(minutes=9)) == []
    os.utime(archive, (2e9, 2e9))  # as from a camera whose clock is wrong
    assert waiting(root, settle, changed_at + timedelta(minutes=11)) == [archive]
    assert waiting(root, settle, changed_at - timedelta(days=1)) == [archive]  # the clock was set back
    (root / INBOX / "b.zip.done").touch()
    assert waiting(root, settle, changed_at) == [archive]


def test_only_archives_of_the_inbox_itself_wait_oldest_first(root):
    for number, name in enumerate(["z.zip", "a.tar.gz"]):
        os.utime(drop(root, BATCH, name), (number, number))
    (root / INBOX / "README.md").write_text("notes")
    (root / INBOX / ".partial.zip").write_text("hidden")
    (root / INBOX / "link.zip").symlink_to(root / SITE / "0000-first.zip")
    drop(root, BATCH, "refused.zip").rename(root / INBOX / "refused")
    assert [path.name for path in waiting(root, timedelta(0), NOW)] == ["z.zip", "a.tar.gz"]


def test_without_an_inbox_nothing_waits(tmp_path):
    assert waiting(tmp_path, timedelta(0), NOW) == []


def refused(root, outcome):
    """The reason and the page of a refused batch, of which nothing else may have come."""
    assert isinstance(outcome, Refused)
    assert below(root / SITE) == ["0000-first.zip"]
    assert read_record(root) == []
    assert outcome.archive.exists()
    assert [path for path in (root / INBOX).iterdir() if path.is_file()] == []
    page = outcome.archive.with_name(outcome.archive.name + ".html")
    reason = outcome.archive.with_name(outcome.archive.name + ".txt").read_text()
    assert reason == outcome.reason + "\n"
    return reason, page.read_text() if page.exists() else None


def test_a_batch_that_breaks_the_contract_is_set_aside_with_reason_and_page(ingested, params):
    bad = BATCH | {"crack/broken.jpg": b"no image"}
    drop(ingested, bad)
    reason, page = refused(ingested, *take(ingested, params))
    assert "at least 95.0 % of the files are images that can be read. Observed: 90.91 %" in reason
    assert "crack/broken.jpg" in page


def test_a_batch_that_is_sound_by_itself_but_not_beside_its_data_set_is_set_aside(ingested, params):
    drop(ingested, BATCH | {"intact/other.jpg": changed(FIRST["crack/0003.jpg"])})
    reason, page = refused(ingested, *take(ingested, params))
    assert "broken: together with site: no image has a copy with the other label. Observed: 2 images" in reason
    assert "    site/0000-first.zip/crack/0003.jpg\n    intact/other.jpg" in reason
    assert page.count("<img") > 0


def test_a_damaged_archive_is_set_aside_with_the_reason(ingested, params):
    archive = drop(ingested, BATCH)
    archive.write_bytes(archive.read_bytes()[:1000])
    reason, page = refused(ingested, *take(ingested, params))
    assert "is neither a folder nor a .zip" in reason
    assert page is None


def test_a_batch_of_one_label_is_sound_where_the_data_set_has_both(ingested, params):
    drop(ingested, {path: content for path, content in BATCH.items() if path.startswith("crack")})
    (taken,) = take(ingested, params)
    assert taken.n_images == 5


def test_a_review_that_corrects_a_label_is_no_conflict_with_it(ingested, params):
    content = FIRST["crack/0003.jpg"]
    text = io.StringIO()
    row = ["a.jpg", "intact", "ann", "2030-01-01T00:00:00Z", hashlib.sha256(content).hexdigest(), "", ""]
    csv.writer(text).writerows([["path", "label", "reviewer", "time", "sha256", "photo", "model_version"], row])
    drop(ingested, {"intact/a.jpg": content, "reviews.csv": text.getvalue().encode()})
    (taken,) = take(ingested, params)
    assert (taken.file, taken.n_images) == ("0001-b.zip", 1)


def test_the_first_batch_of_a_data_set_needs_no_folder(root, params):
    (root / SITE / "0000-first.zip").unlink()
    (root / SITE).rmdir()
    drop(root, BATCH)
    take(root, params)
    assert below(root / SITE) == ["0001-b.zip"]


def test_the_same_file_counts_once_and_again_only_after_it_was_removed(ingested, params):
    drop(ingested, BATCH)
    take(ingested, params)
    drop(ingested, BATCH, "again.zip")
    (outcome,) = take(ingested, params)
    assert isinstance(outcome, Refused)
    assert outcome.reason.startswith("the same file was taken before, as 0001-b.zip on 2030-01-01")
    assert below(ingested / SITE) == ["0000-first.zip", "0001-b.zip"]
    remove(ingested, params, "b.zip", reason="blurred", now=NOW, by="test")
    drop(ingested, BATCH, "again.zip")
    (taken,) = take(ingested, params)
    assert taken.file == "0002-again.zip"


class Killed(BaseException):
    """What kill -9 does: nothing after it runs, but for what unwinds in the same process."""


@pytest.mark.parametrize("point", ["write_record", "os.link", "Path.unlink"])
def test_a_process_that_dies_while_it_takes_a_batch_loses_nothing_and_the_next_counts_it_once(
    ingested, params, monkeypatch, point
):
    content = drop(ingested, BATCH).read_bytes()

    def die(*arguments, **settings):
        raise Killed

    with monkeypatch.context() as patch:
        if point == "write_record":
            patch.setattr(batches, "write_record", die)
        elif point == "os.link":
            patch.setattr(batches.os, "link", die)
        else:
            patch.setattr(batches.Path, "unlink", die)  # the archive is there, and in the inbox still
        with pytest.raises(Killed):
            take(ingested, params)
    take(ingested, params)
    assert below(ingested / SITE) == ["0000-first.zip", "0001-b.zip"]
    assert (ingested / SITE / "0001-b.zip").read_bytes() == content
    assert [batch.file for batch in read_record(ingested)] == ["0001-b.zip"]
    assert take(ingested, params) == []


def test_an_archive_is_copied_from_another_disk(ingested, params, monkeypatch):
    def other_disk(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(batches.os, "link", other_disk)
    drop(ingested, BATCH)
    take(ingested, params)
    assert below(ingested / SITE) == ["0000-first.zip", "0001-b.zip"]
    assert below(ingested / INBOX) == []


def test_a_removed_batch_leaves_the_data_set_and_stays_in_the_record_with_the_reason(ingested, params):
    drop(ingested, BATCH)
    take(ingested, params)
    remove(ingested, params, "0001-b.zip", reason="blurred", now=NOW, by="ann")
    assert below(ingested / SITE) == ["0000-first.zip"]
    assert below(ingested / INBOX) == ["removed/0001-b.zip"]
    (row,) = json.loads((ingested / RECORD).read_text())
    assert (row["removed_by"], row["removed_because"], row["removed_at"]) == ("ann", "blurred", NOW.isoformat())
    with pytest.raises(CracksError, match=r"0 batches are called 'b.zip'. Name one by its file: none"):
        remove(ingested, params, "b.zip", reason="twice", now=NOW, by="ann")


def test_a_removal_that_was_killed_is_completed(ingested, params, monkeypatch):
    drop(ingested, BATCH)
    take(ingested, params)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "_place", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            remove(ingested, params, "b.zip", reason="blurred", now=NOW, by="ann")
    (ingested / INBOX / "removed").mkdir(exist_ok=True)
    for folder in (SITE, INBOX / "removed"):
        (ingested / folder / ".0001-b.zip.99.partial").touch()  # of a process that was killed while it copied
    complete_interrupted(ingested, params)
    assert below(ingested / INBOX) == ["removed/0001-b.zip"]
    assert below(ingested / SITE) == ["0000-first.zip"]


def test_a_record_whose_archive_is_nowhere_stops_everything_but_its_removal(ingested, params):
    drop(ingested, BATCH)
    take(ingested, params)
    (ingested / SITE / "0001-b.zip").unlink()
    drop(ingested, BATCH, "c.zip")
    with pytest.raises(CracksError, match=r"Run `dvc pull` if DVC keeps it, or `cracks batches remove 0001-b.zip`"):
        take(ingested, params)
    remove(ingested, params, "0001-b.zip", reason="gone", now=NOW, by="ann")
    assert [outcome.file for outcome in take(ingested, params)] == ["0002-c.zip"]


def test_a_batch_is_new_until_a_model_has_seen_it(root):
    old = Taken("a.zip", "0001-a.zip", "site", "1", 1, "", "", trained_as="3")
    new = Taken("b.zip", "0002-b.zip", "site", "2", 1, "", "")
    removed = Taken("c.zip", "0003-c.zip", "site", "3", 1, "", "", removed_at="2030")
    write_record(root, [old, new, removed])
    assert untrained(read_record(root)) == [new]
    mark_trained(root, "4")
    assert [batch.trained_as for batch in read_record(root)] == ["3", "4", None]
    assert untrained(read_record(root)) == []


@pytest.mark.parametrize(
    ("there", "known", "expected"),
    [
        ([], [], "0001-n.zip"),
        (["0000-a.zip", "0007-b.zip", "notes.txt"], [], "0008-n.zip"),
        (["0001-a.zip"], ["0002-removed.zip"], "0003-n.zip"),
    ],
)
def test_the_next_batch_has_the_next_number(tmp_path, there, known, expected):
    for name in there:
        (tmp_path / name).touch()
    record = [Taken("", file, "site", "", 1, "", "") for file in known]
    assert next_file_name(tmp_path, record, "n.zip") == expected


def test_an_archive_without_a_number_would_come_last_and_is_to_be_renamed(ingested, params):
    (ingested / SITE / "0000-first.zip").rename(ingested / SITE / "first.zip")
    archive = drop(ingested, BATCH)
    with pytest.raises(CracksError, match=r"Give it a number in front, such as 0000-first.zip"):
        take(ingested, params)
    assert archive.exists()


def test_a_damaged_record_is_an_error(root):
    (root / RECORD).write_text("[{]")
    with pytest.raises(CracksError, match="Restore it with git"):
        read_record(root)


def test_without_a_data_set_that_takes_batches_the_error_says_what_to_name(root, params):
    closed = params.model_copy(update={"retrain": params.retrain.model_copy(update={"dataset": None})})
    with pytest.raises(CracksError, match=r"Name one under retrain.dataset"):
        take(root, closed)
