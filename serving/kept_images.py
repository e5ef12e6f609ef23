"""Keeps images that were scored beside the prediction log, where that is switched on, so that a person can label them.

A file is named by the SHA-256 of its content: an image that comes again is there once.
"""

import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from pipeline.data.images import FORMATS
from pipeline.files import replacing

FOLDER = Path("images")  # below the log's
DROPPED_SHARE = 0.05  # of the limit, at once: looking through the folder for each image would be slow


class KeptImages:
    """The images in one folder, into which several servers may write; the oldest go when they outgrow their limit."""

    def __init__(self, folder: Path, max_mb: float) -> None:
        """Take the folder, which need not exist yet, and the most that its files may weigh together."""
        self._folder = folder.absolute()
        self._max_bytes = max_mb * 1e6
        self._n_bytes_new = float("inf")  # what is there from an earlier run is not known yet

    def keep(self, content: bytes) -> Path:
        """Write an image that can be decoded, whole or not at all; return its file.

        Raises:
            OSError: it cannot be written.
        """
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            suffix = f".{str(image.format).lower()}"
        path = self._folder / f"{hashlib.sha256(content).hexdigest()}{suffix}"
        if path.exists():
            path.touch()  # it is as new as its last row in the log
            return path
        with replacing(path) as partial:
            partial.write_bytes(content)
        self._n_bytes_new += len(content)
        if self._n_bytes_new > DROPPED_SHARE * self._max_bytes:
            self._drop_oldest()
            self._n_bytes_new = 0
        return path

    def _drop_oldest(self) -> None:
        n_bytes_left = (1 - DROPPED_SHARE) * self._max_bytes
        found = [(entry.stat(), Path(entry.path)) for entry in os.scandir(self._folder)]
        for stat, path in sorted(found, key=lambda file: file[0].st_mtime_ns, reverse=True):
            n_bytes_left -= stat.st_size
            if n_bytes_left < 0:
                path.unlink(missing_ok=True)  # another server drops files too
