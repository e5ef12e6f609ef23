"""A project without a git repository, such as one from a downloaded archive, is found before anything is trained."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMMANDS = ["env GIT_CEILING_DIRECTORIES=/ cracks check"]
EXIT_CODE = 2
SAYS = ["is not a git repository. Run: git init && git add --all && git commit"]


def make(folder: Path) -> None:
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc")
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "demo.yaml", folder / "data")
