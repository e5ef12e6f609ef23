"""Labels that people gave on the serving page, and what they change in a data set.

A review batch has reviews.csv at its top, a row a review. Its images go to training alone. A review of an image that
the data set has already corrects the label of that image in its place: nothing is moved, nothing is there twice.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from pipeline.errors import CracksError
from pipeline.params import Label

REVIEWS_FILE = "reviews.csv"
COLUMNS = ("path", "label", "reviewer", "time", "sha256", "photo", "model_version")
LABELS: Mapping[str, Label] = {"crack": "crack", "intact": "intact"}
# What a review leaves in the inventory: who gave the label, when, and in which batch it came.
PROVENANCE = ("reviewer", "reviewed_at", "reviewed_in")


@dataclass(frozen=True)
class Review:
    """What one person said of one image, and when."""

    path: str
    label: Label
    reviewer: str
    time: datetime
    photo: str | None


@dataclass(frozen=True)
class Verdict:
    """What came of all reviews of one image: the newest, or why the image is held back."""

    review: Review
    disagreement: str = ""


def read_reviews(content: bytes, source: str) -> dict[str, Verdict]:
    """Return the verdict on each image, by the sha256 of its bytes.

    Of a person who looked twice the later look counts. Where two people disagree, the image is held back.

    Args:
        content: of reviews.csv.
        source: of the batch, for messages.

    Raises:
        CracksError: it is no such table; the message names the line.
    """
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise CracksError(f"{REVIEWS_FILE} of {source} lacks the columns {', '.join(missing)}. Export it again.")
        latest: dict[str, dict[str, Review]] = {}
        for row in rows:
            sha256, review = _review(row, f"{REVIEWS_FILE} of {source}, line {rows.line_num}")
            by_reviewer = latest.setdefault(sha256, {})
            known = by_reviewer.get(review.reviewer)
            if known is None or known.time <= review.time:
                by_reviewer[review.reviewer] = review
    except (UnicodeDecodeError, csv.Error) as error:
        raise CracksError(f"{REVIEWS_FILE} of {source} is no table: {error}. Export it again.") from None
    return {sha256: _verdict(list(reviews.values())) for sha256, reviews in latest.items()}


def apply_reviews(images: pd.DataFrame) -> pd.DataFrame:
    """Return the inventory with each review's label given to the older images of the same bytes.

    These keep their row, batch and `first_label`, so that no image is dealt anew; the review's own copy of the image,
    which would be there twice, goes. Of one person's reviews in different batches the newest counts. Where two people
    disagree nothing is corrected: the column `disputed` says what each of them said, for `split` to leave the image
    out; elsewhere it is missing.

    Args:
        images: oldest first, positions 0..n-1 as index; columns sha256, label, is_review and `PROVENANCE`.
    """
    disputed = images["sha256"].map(_disputes(images))
    newest = images[images["is_review"] & disputed.isna()].drop_duplicates("sha256", keep="last")
    review = images["sha256"].map(pd.Series(newest.index, index=newest["sha256"]))  # NaN where there is none
    older = images.index[review > images.index]
    columns = ["label", *PROVENANCE]
    result = images.assign(disputed=disputed)
    result.loc[older, columns] = images.loc[review[older].astype(int), columns].to_numpy()
    is_there_already = images["is_review"] & images["sha256"].duplicated()
    return result[~is_there_already].reset_index(drop=True)


def _disputes(images: pd.DataFrame) -> "pd.Series[str]":
    """Return what people said of each image on which they disagree, by sha256."""
    looks = images[images["reviewer"].notna()].drop_duplicates(["sha256", "reviewer"], keep="last")
    n_labels = looks.groupby("sha256")["label"].nunique()
    disputed = looks[looks["sha256"].isin(n_labels.index[n_labels > 1])]
    said = disputed["reviewer"] + ": " + disputed["label"]
    return said.groupby(disputed["sha256"]).agg(lambda each: ", ".join(sorted(each))).astype("str")


def _review(row: dict[str, str | None], where: str) -> tuple[str, Review]:
    """Return the sha256 of a row and its review. Raises CracksError."""
    value = {name: (row[name] or "").strip() for name in COLUMNS}
    time = _moment(value["time"])
    problems = {
        "label": value["label"] not in LABELS,
        "reviewer": not value["reviewer"],
        "time": time is None,
        "sha256": not re.fullmatch(r"[0-9a-f]{64}", value["sha256"]),
    }
    wrong = next((name for name, is_wrong in problems.items() if is_wrong), None)
    if wrong or time is None:
        raise CracksError(
            f"{where}: {wrong} is {value[wrong or 'time']!r}. Wanted are label crack or intact, the reviewer's name, "
            "time in ISO 8601 with its zone, and the sha256 of the image. Export it again."
        )
    return value["sha256"], Review(
        value["path"], LABELS[value["label"]], value["reviewer"], time, value["photo"] or None
    )


def _moment(time: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _verdict(reviews: list[Review]) -> Verdict:
    newest = max(reviews, key=lambda review: (review.time, review.reviewer))
    if len({review.label for review in reviews}) == 1:
        return Verdict(newest)
    said = ", ".join(f"{review.reviewer}: {review.label}" for review in sorted(reviews, key=lambda each: each.reviewer))
    return Verdict(newest, f"held back, its reviewers disagree ({said})")
