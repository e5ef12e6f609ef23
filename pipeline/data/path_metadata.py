"""What the path of an image tells of it: its label, its slice, and the photo that it was cut from."""

import re
from pathlib import PurePosixPath

import pandas as pd

from pipeline.errors import CracksError
from pipeline.params import Label

# The folder names of the two published data sets of this field, and our own.
DEFAULT_LABELS: dict[str, Label] = {
    "Positive": "crack",
    "Negative": "intact",
    "Cracked": "crack",
    "Non-cracked": "intact",
    "crack": "crack",
    "intact": "intact",
}


def label_of(path: str, labels: dict[str, Label]) -> Label | None:
    """Return the label of the nearest folder above `path` that has one, None where no folder has."""
    return next((labels[part] for part in reversed(PurePosixPath(path).parent.parts) if part in labels), None)


def photo_of(path: str, pattern: str | None) -> str | None:
    """Return the photo that the tile at `path` was cut from, None where the pattern does not match or is not given."""
    match = re.search(pattern, path) if pattern else None
    return match[1] if match else None


def slice_of(path: str, labels: dict[str, Label]) -> str:
    """Return the folders of `path` that are no labels, joined by "/": what the images of a folder have in common."""
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
    """Return the photo of each image as DATASET/PHOTO, missing where it is not known.

    Args:
        images: columns dataset and photo.
    """
    # of a column without any photo the type would be object, which does not add to strings
    return images["dataset"].astype("str") + "/" + images["photo"].astype("str")
