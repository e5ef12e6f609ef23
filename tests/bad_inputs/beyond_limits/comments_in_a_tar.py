"""A small tar that holds a thousand times its size in comments is refused with little memory."""

from pathlib import Path

from archive_bombs import tar_of_comments

COMMANDS = ["cracks audit set.tar.gz"]
EXIT_CODE = 2
MAX_SECONDS = 60
MAX_MB = 700
SAYS = ["expands more than 200 times when unpacked", "ingest.max_expansion"]


def make(folder: Path) -> None:
    tar_of_comments(folder / "set.tar.gz", 150)
