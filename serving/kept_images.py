"""Stores scored images beside the prediction log, if that is switched on, so that a person can label them.

A file is named by the SHA-256 of its content, so that an image that is sent again is stored once.
"""

import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from pipeline.data.images import FORMATS
from pipeline.files import replacing

FOLDER = Path("images")  # below the folder of the log
FREED_SHARE = 0.05  # of the limit, freed at once: scanning the folder for each image would be slow


class KeptImages:
    """The images in a folder, which several servers may share; above the limit the oldest are deleted."""

    def __init__(self, folder: Path, max_mb: float) -> None:
        """Set the folder, which need not exist, and the limit of the total size of its files."""
        self._folder = folder.absolute()
        self._max_bytes = max_mb * 1e6
        self._n_bytes_new = float("inf")  # the first image triggers a scan of the files of earlier runs

    def keep(self, content: bytes) -> Path:
        """Write the bytes of an image that can be decoded; return its path. Raises OSError if it cannot be written."""
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            suffix = f".{str(image.format).lower()}"
        path = self._folder / f"{hashlib.sha256(content).hexdigest()}{suffix}"
        if path.exists():
            path.touch()  # as recent as its last row in the log
            return path
        with replacing(path) as partial:
            partial.write_bytes(content)
        self._n_bytes_new += len(content)
        if self._n_bytes_new > FREED_SHARE * self._max_bytes:
            self._drop_oldest()
            self._n_bytes_new = 0
        return path

    def _drop_oldest(self) -> None:
        n_bytes_left = (1 - FREED_SHARE) * self._max_bytes
        found = [(entry.stat(), Path(entry.path)) for entry in os.scandir(self._folder)]
        for stat, path in sorted(found, key=lambda file: file[0].st_mtime_ns, reverse=True):
            n_bytes_left -= stat.st_size
            if n_bytes_left < 0:
                path.unlink(missing_ok=True)  # another server may have deleted it
