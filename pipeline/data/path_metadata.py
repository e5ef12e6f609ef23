"""Metadata from the path of an image: its label, its slice, and the photo that it was cut from."""

import re
from pathlib import PurePosixPath

import pandas as pd

from pipeline.errors import CracksError
from pipeline.params import Label

# The folder names of two published data sets, and of the demo.
DEFAULT_LABELS: dict[str, Label] = {
    "Positive": "crack",
    "Negative": "intact",
    "Cracked": "crack",
    "Non-cracked": "intact",
    "crack": "crack",
    "intact": "intact",
}


def label_of(path: str, labels: dict[str, Label]) -> Label | None:
    """Return the label of the nearest folder above `path` that has one, None if there is none."""
    return next((labels[part] for part in reversed(PurePosixPath(path).parent.parts) if part in labels), None)


def photo_of(path: str, pattern: str | None) -> str | None:
    """Return the photo that the tile at `path` was cut from, None if the pattern does not match or is None."""
    match = re.search(pattern, path) if pattern else None
    return match[1] if match else None


def slice_of(path: str, labels: dict[str, Label]) -> str:
    """Return the folders of `path` that are no labels, joined by "/", such as the surface."""
    return "/".join(part for part in PurePosixPath(path).parent.parts if part not in labels)


def check_photo_pattern(pattern: str | None) -> None:
    """Raise CracksError unless `pattern` is a regular expression with a group, or None."""
    try:
        n_groups = re.compile(pattern or "()").groups
    except re.error as error:
        raise CracksError(f"photo_pattern {pattern!r} is no regular expression: {error}.") from None
    if not n_groups:
        raise CracksError(
            f"photo_pattern {pattern!r} has no group. Put the part that names the photo into parentheses."
        )


def qualified_photos(images: pd.DataFrame) -> "pd.Series[str]":
    """Return the photo of each image, by the columns dataset and photo, as DATASET/PHOTO; missing if not known."""
    # a column without any photo has dtype object, which cannot be added to strings
    return images["dataset"].astype("str") + "/" + images["photo"].astype("str")
