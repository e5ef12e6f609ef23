"""A zip of many small files, each within every limit, is refused for all of them together."""

from pathlib import Path

from archive_bombs import zip_of_small_files

COMMANDS = ["cracks audit set.zip"]
EXIT_CODE = 2
MAX_SECONDS = 60
MAX_MB = 700
SAYS = ["expands more than 200 times when unpacked", "ingest.max_expansion"]


def make(folder: Path) -> None:
    zip_of_small_files(folder / "set.zip")
