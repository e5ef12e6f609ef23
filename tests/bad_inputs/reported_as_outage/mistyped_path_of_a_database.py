"""A path of a database that does not exist is a mistake: no model is taken instead, and no database is created."""

from pathlib import Path

from PIL import Image

COMMANDS = ["env MLFLOW_TRACKING_URI=sqlite:///typo/mlflow.db cracks predict photo.png --out scores.csv"]
EXIT_CODE = 2
SAYS = ["names a database that does not exist", "mlflow db upgrade sqlite:///typo/mlflow.db"]


def make(folder: Path) -> None:
    (folder / "typo").mkdir()
    Image.new("RGB", (64, 64), "grey").save(folder / "photo.png")


def check(folder: Path) -> None:
    assert list((folder / "typo").iterdir()) == []
    assert not (folder / "scores.csv").exists()
