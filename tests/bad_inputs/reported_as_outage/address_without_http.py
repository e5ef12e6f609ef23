"""An address of a tracking server without http:// is a mistake, with what was probably meant."""

from pathlib import Path

COMMANDS = ["env MLFLOW_TRACKING_URI=localhost:5000 cracks history"]
EXIT_CODE = 2
SAYS = ["MLFLOW_TRACKING_URI is 'localhost:5000'", "did you mean http://localhost:5000?"]


def make(folder: Path) -> None:
    """Nothing is needed."""
