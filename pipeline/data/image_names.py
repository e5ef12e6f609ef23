"""What counts as an image of the user's, by its path: one rule for data sets, `cracks predict` and `cracks map`."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

# Of FORMATS of pipeline.data.images.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp"}
# Pictures that are known and not read, by suffix: raw photos have only a preview that is.
_NOT_READ = {
    "HEIC": ".heic .heif .heics .heifs .hif",
    "AVIF": ".avif .avifs",
    "GIF": ".gif",
    "JPEG 2000": ".jp2 .j2k .j2c .jpc .jpf .jpx",
    "JPEG XL": ".jxl",
    "Photoshop": ".psd .psb",
    "raw": ".dng .3fr .arw .cr2 .cr3 .crw .erf .fff .gpr .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .rw2 .rwl "
    ".sr2 .srf .srw .x3f",
}
_KINDS = {suffix: kind for kind, suffixes in _NOT_READ.items() for suffix in suffixes.split()}
_CONVERT = {
    "HEIC": "Convert it to JPEG, on a Mac by `sips -s format jpeg PHOTO --out PHOTO.jpg`, on Linux by `heif-convert "
    "PHOTO PHOTO.jpg`. An iPhone stores JPEGs with Settings, Camera, Formats, Most Compatible",
    "raw": "Export it as JPEG from the software of the camera",
}
# Folders of deleted files and of thumbnails, in lower case: of macOS, Synology, QNAP and Windows.
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information"}
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
OVERLAY_SUFFIX = ".cracks.jpg"  # of what `cracks map` draws, whose files bear a comment too
MASK_SUFFIX = ".mask.png"  # of its crack lines
OVERLAY_COMMENT = b"drawn by cracks map"
# First bytes of pictures that are not read, after the number of bytes before them.
_SIGNATURES = (
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftypcrx", "raw"),
    (0, b"GIF8", "GIF"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
)


def not_read(kind: str) -> str:
    """Return why a picture of a kind such as HEIC cannot be used, and how to convert it."""
    return f"a {kind} picture, which is not read. {_CONVERT.get(kind, 'Convert it to JPEG or PNG')}"


def not_read_content(content: bytes) -> str:
    """Return why content is a picture that is not read, by its first bytes; empty if it is none."""
    return next((not_read(kind) for start, head, kind in _SIGNATURES if content.startswith(head, start)), "")


def not_read_reason(path: str) -> str:
    """Return why a file is a picture that is not read, by its suffix; empty if it is none."""
    kind = _KINDS.get(PurePosixPath(path).suffix.lower())
    return not_read(kind) if kind else ""


def left_out_reason(path: str) -> str:
    """Return why a file below the folder or archive that was given is no image of the user's; empty if it may be one.

    Files without the suffix of a picture are not judged here; `no_picture_reason` does.
    """
    parts = [part.lower() for part in PurePosixPath(path).parts]
    if not parts or parts[-1] in _SYSTEM_FILES or _SYSTEM_FOLDERS.intersection(parts):
        return "a thumbnail, a deleted file or another file of the system"
    if any(part.startswith(".") and part != ".." for part in parts):
        return "hidden, or in a hidden folder"
    return "a picture that `cracks map` has drawn" if parts[-1].endswith((OVERLAY_SUFFIX, MASK_SUFFIX)) else ""


def no_picture_reason(path: str) -> str:
    """Return why a file such as a note or a table is left out; empty if it has the suffix of a picture."""
    suffix = PurePosixPath(path).suffix.lower()
    return "" if suffix in IMAGE_SUFFIXES or suffix in _KINDS else f"not a picture ({suffix or 'without a suffix'})"


def reasons_with_counts(reasons: Iterable[str], n_shown: int = 5) -> str:
    """Return the commonest reasons, a line each, with numbers of files; a number in a reason makes no difference."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        groups.setdefault(re.sub(r"\d+", "#", reason), []).append(reason)
    ordered = sorted(groups.values(), key=len, reverse=True)
    lines = [f"{len(group):,} {'file' if len(group) == 1 else 'files'}: {group[0]}" for group in ordered[:n_shown]]
    if rest := sum(map(len, ordered[n_shown:])):
        lines.append(f"{rest:,} more, for other reasons")
    return "".join(f"\n  {line}" for line in lines)
