"""The project's folder and the paths below it that flows and commands use; dvc.yaml has the paths of the stages."""

import os
from pathlib import Path

# Relative to the project's folder.
DATASETS = Path("data/datasets")
DATA_CONTEXT = Path("data/gx")
MANIFEST = Path("data/manifest.parquet")
INBOX = Path("data/inbox")
LOG_FOLDER = Path("data/predictions")
MONITORING_STATE = Path("data/monitoring/state.json")
TO_LABEL = Path("data/monitoring/to-label")
REPORTS = Path("reports")


def project_root() -> Path:
    """Return the project's folder: DVC's root, which in an experiment is the repository that started it."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def in_experiment() -> bool:
    """Return whether this process is part of `dvc exp run`."""
    return "DVC_EXP_BASELINE_REV" in os.environ
