"""Reviews: labels that people gave on the serving page, and how they change a data set.

A review batch has the file reviews.csv at its top, with a row per review. Its images are only trained on. If the data
set already contains the image, the review corrects the label in the existing row: no image moves or is duplicated.
"""

import csv
import io
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import pandas as pd
from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, ValidationError

from pipeline.errors import CracksError
from pipeline.params import Label
from pipeline.safe_text import text_of_cell

REVIEWS_FILE = "reviews.csv"
COLUMNS = ("path", "label", "reviewer", "time", "sha256", "photo", "model_version")
# Columns of the inventory: who gave the label, when, and in which batch it arrived.
PROVENANCE = ("reviewer", "reviewed_at", "reviewed_in")


class Review(BaseModel):
    """A row of reviews.csv: the label that a person gave to an image, and when."""

    path: str
    label: Label
    reviewer: str = Field(min_length=1)
    # stricter than pydantic alone, which takes a number for seconds since 1970
    time: Annotated[AwareDatetime, BeforeValidator(datetime.fromisoformat)]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    photo: str


@dataclass(frozen=True)
class Verdict:
    """The newest review of an image, and why the image is not used, if its reviewers disagree."""

    review: Review
    disagreement: str = ""


def read_reviews(content: bytes, source: str) -> dict[str, Verdict]:
    """Return the verdict of the reviews.csv `content` on each image, by the sha256 of its bytes.

    If a person reviewed an image twice, the later review counts. If two people disagree, the image is not used. Raises
    CracksError, which names the batch (`source`) and the line, if the table is invalid.
    """
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise CracksError(f"{REVIEWS_FILE} of {source} lacks the columns {', '.join(missing)}. Export it again.")
        latest: dict[str, dict[str, Review]] = {}
        for row in rows:
            review = _review(row, f"{REVIEWS_FILE} of {source}, line {rows.line_num}")
            by_reviewer = latest.setdefault(review.sha256, {})
            if by_reviewer.get(review.reviewer, review).time <= review.time:
                by_reviewer[review.reviewer] = review
    except (UnicodeDecodeError, csv.Error) as error:
        raise CracksError(f"{REVIEWS_FILE} of {source} is no CSV table: {error}. Export it again.") from None
    return {sha256: _verdict(list(reviews.values())) for sha256, reviews in latest.items()}


def apply_reviews(images: pd.DataFrame) -> pd.DataFrame:
    """Return the inventory with reviewed labels applied to older images of the same bytes.

    These keep their row, batch and `first_label`, so that no image changes its side of the split; the copy of the image
    in the review batch is dropped. If a person reviewed an image in several batches, the newest review counts. If two
    people disagree, nothing is corrected: the column `disputed` has the label of each, and `split` excludes the image.
    Elsewhere `disputed` is missing. `images` are oldest first, with positions 0..n-1 as index.
    """
    disputed = images["sha256"].map(_disputes(images))
    newest = images[images["is_review"] & disputed.isna()].drop_duplicates("sha256", keep="last")
    review = images["sha256"].map(pd.Series(newest.index, index=newest["sha256"]))  # NaN where there is none
    older = images.index[review > images.index]
    columns = ["label", *PROVENANCE]
    result = images.assign(disputed=disputed)
    result.loc[older, columns] = images.loc[review[older].astype(int), columns].to_numpy()
    is_duplicate = images["is_review"] & images["sha256"].duplicated()
    return result[~is_duplicate].reset_index(drop=True)


def _disputes(images: pd.DataFrame) -> "pd.Series[str]":
    """Return the labels of each reviewer as text, for images on which they disagree, by sha256."""
    reviews = images[images["reviewer"].notna()].drop_duplicates(["sha256", "reviewer"], keep="last")
    n_labels = reviews.groupby("sha256")["label"].nunique()
    disputed = reviews[reviews["sha256"].isin(n_labels.index[n_labels > 1])]
    labels = disputed["reviewer"] + ": " + disputed["label"]
    return labels.groupby(disputed["sha256"]).agg(lambda each: ", ".join(sorted(each))).astype("str")


def _review(row: dict[str, str | None], where: str) -> Review:
    values = {name: text_of_cell((row[name] or "").strip()) for name in COLUMNS}
    try:
        return Review.model_validate(values)
    except ValidationError as error:
        wrong = str(error.errors()[0]["loc"][0])
        raise CracksError(
            f"{where}: {wrong} is {values[wrong]!r}. Each row needs the label crack or intact, the "
            "reviewer's name, the time in ISO 8601 with a time zone, and the sha256 of the image. Export it again."
        ) from None


def _verdict(reviews: list[Review]) -> Verdict:
    newest = max(reviews, key=lambda review: (review.time, review.reviewer))
    if len({review.label for review in reviews}) == 1:
        return Verdict(newest)
    labels = ", ".join(sorted(f"{review.reviewer}: {review.label}" for review in reviews))
    return Verdict(newest, f"not used, its reviewers disagree ({labels})")
