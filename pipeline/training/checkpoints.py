"""Where an unfinished training is kept, and its history, from which a killed one resumes."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.files import name_by_hash, write_text
from pipeline.models.model_files import TRACER_WEIGHTS
from pipeline.params import Params, named

FORMAT = "3"  # of what an unfinished training keeps; one of another format is not resumed


def checkpoint_folder(checkpoints: Path, manifest: Path, params: Params, name: str) -> Path:
    """Return the checkpoint folder of a candidate, so that only an equal run is resumed.

    It depends on all settings, and on the tracer that ships, as cached activations have its likelihoods.
    """
    candidate = named(params.candidates, name, "candidate")
    settings = [one.model_dump_json() for one in (candidate, params.backbones[candidate.backbone])]
    return checkpoints / name_by_hash(FORMAT, manifest.read_bytes(), TRACER_WEIGHTS.read_bytes(), *settings)


def digest_of(rows: pd.DataFrame) -> str:
    """Return a hash of rows of the manifest, for a name of what is computed from their images."""
    return name_by_hash(rows.to_csv(index=False))


@dataclass
class TrainingHistory:
    """One row per epoch, written to `path` after each epoch, so that a killed training can resume."""

    path: Path
    report: Callable[[int, dict[str, float]], None]  # step from 0 over all phases, values of the epoch
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def add(self, phase: str, epoch: int, values: dict[str, float]) -> None:
        """Report an epoch, then append its row; drop rows of this phase from it on, which a killed run left."""
        kept = [row for row in self.rows if row["phase"] != phase or row["epoch"] < epoch]
        self.report(len(kept), values)
        self.rows = [*kept, {"step": len(kept), "phase": phase, "epoch": epoch, **values}]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def losses(self, phase: str) -> list[float]:
        """Return the validation loss of each finished epoch of a phase, infinity for NaN, which is no best loss."""
        losses = [row["val_loss"] for row in self.rows if row["phase"] == phase]
        return [math.inf if math.isnan(loss) else loss for loss in losses]
