"""A zip by a method that is not read says which one and what to do, not only that there is no image."""

import zipfile
from pathlib import Path

COMMANDS = ["cracks audit set.zip"]
EXIT_CODE = 2
SAYS = [
    "no image that can be read (3 other files:\n  2 files: compressed by LZMA, not by Deflate. Unpack it",
    "\n  1 file: not a picture (.txt)",
]


def make(folder: Path) -> None:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("Positive/1.jpg", b"a photo")
        opened.writestr("Negative/2.jpg", b"a photo")
        opened.writestr("notes.txt", b"a note", zipfile.ZIP_STORED)
