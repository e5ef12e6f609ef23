"""Metadata from the path of an image: its label, its slice, and the photo that it was cut from."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath

import pandas as pd

from pipeline.errors import CracksError
from pipeline.params import Label
from pipeline.params.data_sections import folder_name

# The folder names of two published data sets, and of the demo.
DEFAULT_LABELS: dict[str, Label] = {
    "Positive": "crack",
    "Negative": "intact",
    "Cracked": "crack",
    "Non-cracked": "intact",
    "crack": "crack",
    "intact": "intact",
}
# SDNET2018 as its authors published it: in D/CD are cracked tiles of decks. These names count only below none of the
# names above, and in capitals: `up` can be any folder.
SDNET_FOLDERS = {
    label + surface: (folder, slice_name)
    for label, folder in (("C", "Cracked"), ("U", "Non-cracked"))
    for surface, slice_name in (("D", "Decks"), ("P", "Pavements"), ("W", "Walls"))
}


def _folders(path: str, labels: Mapping[str, Label] | None) -> list[tuple[str, Label | None]]:
    """Return the folders above `path`, in composed Unicode, with their labels; SDNET2018's under their usual names."""
    known = {folder_name(folder): label for folder, label in (labels or DEFAULT_LABELS).items()}
    folders = [unicodedata.normalize("NFC", part) for part in PurePosixPath(path).parent.parts]
    code = next((folder for folder in reversed(folders) if folder in SDNET_FOLDERS), None)
    if code and not labels and not any(folder_name(folder) in known for folder in folders):
        folders = [*(folder for folder in folders if folder not in (code, code[-1])), *reversed(SDNET_FOLDERS[code])]
    return [(folder, known.get(folder_name(folder))) for folder in folders]


def label_of(path: str, labels: Mapping[str, Label] | None) -> Label | None:
    """Return the label of the nearest folder above `path` that has one, None if there is none.

    `labels` are a data set's own: folder -> label; None or none at all means the names of published data sets.
    """
    return next((label for _, label in reversed(_folders(path, labels)) if label), None)


def photo_of(path: str, pattern: str | None) -> str | None:
    """Return the photo that the tile at `path` was cut from, None if the pattern does not match or is None."""
    match = re.search(pattern, path) if pattern else None
    return match[1] if match else None


def slice_of(path: str, labels: Mapping[str, Label] | None) -> str:
    """Return the folders of `path` that are no `labels`, as of `label_of`, joined by "/", such as the surface."""
    return "/".join(folder for folder, label in _folders(path, labels) if not label)


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
