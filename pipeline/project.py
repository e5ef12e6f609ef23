"""The project's folder, and the paths below it that flows and commands know; those of the stages are in dvc.yaml."""

import os
from pathlib import Path

# Each below the project's folder.
DATASETS = Path("data/datasets")
MANIFEST = Path("data/manifest.parquet")
INBOX = Path("data/inbox")
LOG_FOLDER = Path("data/predictions")
MONITORING_STATE = Path("data/monitoring/state.json")
TO_LABEL = Path("data/monitoring/to-label")
REPORTS = Path("reports")


def project_root() -> Path:
    """Return the project's folder: DVC's root, which inside an experiment is still the repository it came from."""
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def in_experiment() -> bool:
    """Return whether this process is part of `dvc exp run`."""
    return "DVC_EXP_BASELINE_REV" in os.environ
