"""Folders in folders, deeper than a path can be long, are said in words."""

import os
from pathlib import Path

COMMANDS = ["cracks audit set"]
EXIT_CODE = 2
MAX_SECONDS = 60
SAYS = ["error: File name too long: set/deeper/deeper", "Folders are nested too deep there"]


def make(folder: Path) -> None:
    before = Path.cwd()
    (folder / "set").mkdir()
    os.chdir(folder / "set")
    for _ in range(1500):
        Path("deeper").mkdir()
        os.chdir("deeper")
    os.chdir(before)
