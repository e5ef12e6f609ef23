"""Checkpoints of an unfinished training, from which a killed one resumes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import write_text
from pipeline.models.tf import keras
from pipeline.params import Params, named

EpochReport = Callable[[int, dict[str, float]], None]  # step from 0 over all phases, values of the epoch


def checkpoint_folder(checkpoints: Path, manifest: Path, params: Params, name: str) -> Path:
    """Return the checkpoint folder of a candidate; it depends on all settings, so that only an equal run is resumed."""
    candidate = named(params.candidates, name, "candidate")
    digest = hashlib.sha256(manifest.read_bytes())
    digest.update(candidate.model_dump_json().encode())
    digest.update(params.backbones[candidate.backbone].model_dump_json().encode())
    return checkpoints / digest.hexdigest()[:16]


@dataclass
class TrainingHistory:
    """One row per epoch, written to `path` after each epoch, so that a killed training can resume."""

    path: Path
    report: EpochReport
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def add(self, phase: str, epoch: int, values: dict[str, float]) -> None:
        """Append the row of an epoch; drop rows of this phase from this epoch on, which a killed run left."""
        kept = [row for row in self.rows if row["phase"] != phase or row["epoch"] < epoch]
        self.rows = [*kept, {"step": len(kept), "phase": phase, "epoch": epoch, **values}]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.report(len(kept), values)


def weights_file(folder: Path, phase: str, epoch: int) -> Path:
    """Return the path of the weights after an epoch."""
    return folder / f"{phase}-{epoch:04}.weights.h5"


def n_epochs_done(folder: Path, phase: str) -> int:
    """Return the number of finished epochs of a phase, from the weights in `folder`."""
    return max(
        (int(path.name[len(phase) + 1 :][:4]) + 1 for path in folder.glob(f"{phase}-????.weights.h5")), default=0
    )


def save_best_and_last_weights(model: keras.Model, folder: Path, phase: str, losses: list[float]) -> None:
    """Save weights and optimizer state after an epoch; keep those of the last and the best epoch, delete the others."""
    last, best = len(losses) - 1, int(np.argmin(losses))
    partial = folder / f"{phase}.partial.weights.h5"  # Keras requires this extension
    model.save_weights(partial)
    partial.replace(weights_file(folder, phase, last))
    for epoch in range(last):
        if epoch != best:
            weights_file(folder, phase, epoch).unlink(missing_ok=True)
