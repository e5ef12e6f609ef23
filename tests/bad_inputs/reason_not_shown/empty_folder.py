"""A folder without a file is said to contain no image."""

from pathlib import Path

COMMANDS = ["cracks audit set"]
EXIT_CODE = 2
SAYS = ["error: set contains no image that can be read"]


def make(folder: Path) -> None:
    (folder / "set").mkdir()
