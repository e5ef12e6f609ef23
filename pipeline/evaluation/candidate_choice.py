"""The choice of a candidate by its scores on validation."""

import json
from collections.abc import Iterable
from pathlib import Path


def best_candidate(folder: Path, names: Iterable[str]) -> str:
    """Return the name with the lowest selection loss on validation, the first by name if there are several.

    `folder` has the scores that `train` writes of each candidate, NAME.json.
    """
    losses = {name: float(json.loads((folder / f"{name}.json").read_text())["selection_loss"]) for name in names}
    return min(sorted(losses), key=lambda name: losses[name])
