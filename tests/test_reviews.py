import csv
import hashlib
import io

import pandas as pd
import pytest
from archive_writer import LIMITS, write_zip
from drawn_data import drawn_files, in_process

from pipeline.data import dataset_reader
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.images import INVENTORY_FILE, PackedImages, read_quarantine
from pipeline.data.reviews import COLUMNS, apply_reviews, read_reviews
from pipeline.errors import CracksError
from pipeline.params import Dataset

NOON, EVENING = "2026-05-01T12:00:00Z", "2026-05-01T20:00:00+02:00"  # an evening of 18:00 UTC
A, B = "a" * 64, "b" * 64


def review(sha256=A, label="crack", reviewer="ann", time=NOON, path="crack/1.jpg", photo=""):
    return [path, label, reviewer, time, sha256, photo, "3"]


def table(*rows, columns=COLUMNS):
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue().encode()


def test_a_review_is_read_with_its_reviewer_time_and_photo():
    verdict = read_reviews(table(review(photo="deck 1")), "x.zip")[A]
    assert (verdict.review.label, verdict.review.reviewer, verdict.review.photo) == ("crack", "ann", "deck 1")
    assert verdict.review.time.isoformat() == "2026-05-01T12:00:00+00:00"
    assert verdict.disagreement == ""


def test_the_latest_review_of_a_person_by_time_counts_whatever_the_order_of_lines():
    rows = [review(label="intact", time=EVENING), review(label="crack", time=NOON)]
    for lines in (rows, rows[::-1]):
        verdict = read_reviews(table(*lines), "x.zip")[A]
        assert (verdict.review.label, verdict.disagreement) == ("intact", "")


def test_two_people_who_agree_give_one_label_and_the_newer_review_is_kept():
    verdict = read_reviews(table(review(reviewer="bob", time=EVENING), review()), "x.zip")[A]
    assert (verdict.review.label, verdict.review.reviewer, verdict.disagreement) == ("crack", "bob", "")


def test_an_image_on_which_two_people_disagree_is_not_used_and_others_are():
    verdicts = read_reviews(table(review(reviewer="bob", label="intact"), review(), review(B)), "x.zip")
    assert verdicts[A].disagreement == "not used, its reviewers disagree (ann: crack, bob: intact)"
    assert verdicts[B].disagreement == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(review(label="maybe")), r"of x\.zip, line 2: label is 'maybe'"),
        (table(review(), review(reviewer=" ")), "line 3: reviewer is ''"),
        (table(review(time="2026-05-01T12:00:00")), "time is '2026-05-01T12:00:00'"),
        (table(review(time="yesterday")), "time is 'yesterday'"),
        (table(review(time="45000.5")), r"time is '45000\.5'"),  # as a spreadsheet stores it
        (table(review(sha256="A" * 64)), "sha256 is 'AAAA"),
        (table(review()[:3]), "line 2: time is ''"),
        (table(columns=COLUMNS[1:]), "lacks the columns path"),
        (b"", "lacks the columns path, label"),
        (b"\xff\xfe", "is no CSV table"),
        (table(review()) + b'"open', "is no CSV table"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_line(content, message):
    with pytest.raises(CracksError, match=message):
        read_reviews(content, "x.zip")


def inventory(*rows):
    """Rows as (batch, sha256, label, reviewer or None)."""
    images = pd.DataFrame(rows, columns=["batch", "sha256", "label", "reviewer"])
    is_review = images["reviewer"].notna()
    return images.assign(
        is_review=is_review,
        first_label=images["label"],
        reviewed_at=None,
        reviewed_in=images["batch"].where(is_review, None),
    )


def test_a_review_corrects_older_images_of_its_bytes_in_their_place():
    older = [("1", "a", "crack", None), ("1", "b", "crack", None), ("2", "a", "crack", None)]
    images = apply_reviews(inventory(*older, ("3", "a", "intact", "ann")))
    assert images["batch"].tolist() == ["1", "1", "2"]
    assert images["label"].tolist() == ["intact", "crack", "intact"]
    assert images["first_label"].tolist() == ["crack"] * 3
    assert images["reviewed_in"].fillna("").tolist() == ["3", "", "3"]
    assert images["is_review"].tolist() == [False] * 3


def test_the_newer_of_one_persons_reviews_in_two_batches_counts_and_the_image_keeps_its_row():
    images = apply_reviews(inventory(("1", "a", "crack", "ann"), ("2", "a", "intact", "ann")))
    assert images[["batch", "label", "reviewed_in", "is_review"]].to_numpy().tolist() == [["1", "intact", "2", True]]
    assert images["disputed"].isna().all()


def test_two_people_who_disagree_in_two_batches_correct_nothing_and_the_image_says_so():
    images = apply_reviews(
        inventory(
            ("1", "a", "crack", None),
            ("1", "b", "crack", None),
            ("2", "a", "intact", "ann"),
            ("3", "a", "crack", "bob"),
        )
    )
    assert images[["batch", "sha256", "label"]].to_numpy().tolist() == [["1", "a", "crack"], ["1", "b", "crack"]]
    assert images["disputed"].fillna("").tolist() == ["ann: intact, bob: crack", ""]


def test_a_dispute_ends_when_they_agree():
    looks = [("2", "a", "intact", "ann"), ("3", "a", "crack", "bob"), ("4", "a", "intact", "bob")]
    images = apply_reviews(inventory(("1", "a", "crack", None), *looks))
    assert images[["label", "reviewer"]].to_numpy().tolist() == [["intact", "bob"]]
    assert images["disputed"].isna().all()


def test_an_image_that_came_after_its_review_keeps_its_own_label():
    images = apply_reviews(inventory(("1", "a", "crack", "ann"), ("2", "a", "intact", None)))
    assert images["label"].tolist() == ["crack", "intact"]  # for the contract to find


@pytest.fixture
def run_ingest(tmp_path, monkeypatch):
    """Return a function that ingests a source in this process."""
    monkeypatch.setattr(dataset_reader, "ProcessPoolExecutor", in_process)

    def run(source):
        pack_dataset(Dataset(source=source), LIMITS, tmp_path / "out")
        return pd.read_parquet(tmp_path / "out" / INVENTORY_FILE), read_quarantine(tmp_path / "out")

    return run


def test_a_review_batch_adds_new_images_and_corrects_existing_ones(tmp_path, run_ingest):
    files = drawn_files(n=4)
    first, *news = files["crack/0001.jpg"], files["crack/0002.jpg"], files["intact/0003.jpg"], files["intact/0004.jpg"]
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    folder = tmp_path / "site"
    folder.mkdir()
    write_zip(folder / "0001.zip", {"crack/a.jpg": first, "intact/b.jpg": files["intact/0001.jpg"]})
    rows = [
        review(sha256["crack/0001.jpg"], "intact", path="intact/a.jpg", time=EVENING),
        review(sha256["crack/0002.jpg"], "crack", photo="deck 1"),
        review(sha256["intact/0003.jpg"], "crack", path="intact/3.jpg"),
        review(sha256["intact/0003.jpg"], "intact", "bob", path="intact/3.jpg"),
        review(B, path="crack/gone.jpg"),
    ]
    images = {"intact/a.jpg": first, "crack/1.jpg": news[0], "intact/3.jpg": news[1], "intact/4.jpg": news[2]}
    write_zip(folder / "0002-reviews.zip", images | {"reviews.csv": table(*rows), "sub/reviews.csv": b"no image"})

    inventory, quarantine = run_ingest(folder)

    shown = inventory[["batch", "path", "label", "first_label", "photo", "is_review", "reviewer", "reviewed_in"]]
    assert shown.astype(object).where(shown.notna(), None).to_numpy().tolist() == [
        ["0001.zip", "crack/a.jpg", "intact", "crack", None, False, "ann", "0002-reviews.zip"],
        ["0001.zip", "intact/b.jpg", "intact", "intact", None, False, None, None],
        ["0002-reviews.zip", "crack/1.jpg", "crack", "crack", "deck 1", True, "ann", "0002-reviews.zip"],
    ]
    assert inventory["reviewed_at"][0] == "2026-05-01T20:00:00+02:00"
    assert quarantine[["path", "reason", "is_image"]].to_numpy().tolist() == [
        ["intact/3.jpg", "not used, its reviewers disagree (ann: crack, bob: intact)", True],
        ["intact/4.jpg", "not in reviews.csv", True],
        ["crack/gone.jpg", "reviewed, but the image is missing", True],
        ["sub/reviews.csv", "not a picture (.csv)", False],
    ]
    packed = PackedImages(tmp_path / "out")
    assert [packed.content(row) for row in range(3)] == [first, files["intact/0001.jpg"], news[0]]
