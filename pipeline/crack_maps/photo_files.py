"""The files of the map of a photo: their names, and whether they are finished."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.crack_maps.line_files import COCO_FILE, GEOJSON_SUFFIX
from pipeline.data.image_names import MASK_SUFFIX, OVERLAY_SUFFIX
from pipeline.errors import CracksError
from pipeline.files import replacing, write_json
from pipeline.safe_text import as_utf8

TILES_SUFFIX, REPORT_SUFFIX = ".tiles.csv", ".json"
SUFFIXES = (OVERLAY_SUFFIX, MASK_SUFFIX, GEOJSON_SUFFIX, TILES_SUFFIX)  # of the files of a photo, without its report
MAX_NAME_BYTES = 180  # file systems allow 255, and suffixes are added


@dataclass(frozen=True)
class PhotoFiles:
    """The content of the files of a photo: by the end of their name, and that of NAME.json."""

    contents: dict[str, bytes]
    report: dict[str, Any]


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a name for the files of each photo: its own name, with a hash of its path if another file has it."""
    names = {path: as_utf8(Path(path.stem)) for path in paths}
    n_photos = Counter(name.casefold() for name in names.values())
    for path, stem in names.items():
        is_taken = n_photos[stem.casefold()] > 1 or f"{stem}{REPORT_SUFFIX}".casefold() == COCO_FILE
        if is_taken or len(stem.encode()) > MAX_NAME_BYTES:
            digest = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()[:8]
            short = stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
            names[path] = f"{short}-{digest}"
    return names


def write_photo(out: Path, name: str, key: str, files: PhotoFiles) -> None:
    """Write the files of a photo; the report, which marks it as finished, last."""
    for suffix, content in files.contents.items():
        with replacing(out / f"{name}{suffix}") as partial:
            partial.write_bytes(content)
    write_json(out / f"{name}{REPORT_SUFFIX}", {**files.report, "key": key})


def finished_report(out: Path, name: str, key: str | None = None) -> dict[str, Any] | None:
    """Return the report of a finished photo, None if a file is missing or damaged, or it has another `key`.

    Raises CracksError if a file of that name is no report, such as a person's annotations of the photo.
    """
    path = out / f"{name}{REPORT_SUFFIX}"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or "key" not in report:
        raise CracksError(f"{path} is there and was not written by this command; choose another --out")
    is_whole = all((out / f"{name}{suffix}").is_file() for suffix in SUFFIXES)
    return report if is_whole and key in (None, report["key"]) else None
