"""Folders Yes and No without quotes, which YAML reads as true and false, and a name with blanks, are explained."""

from pathlib import Path

COMMANDS = ["cracks audit set"]
EXIT_CODE = 2
SAYS = [
    "datasets.demo.labels: Value error, YAML reads the name of a folder as True. Put it in quotes",
    "a name has only the letters a to z, digits, - and _",
]
DATASETS = """datasets:
  Brücke Süd (2024): {source: set}
  demo:
    labels: {Yes: crack, No: intact}"""


def make(folder: Path) -> None:
    (folder / "set").mkdir()
    params = folder / "params.yaml"
    text = params.read_text(encoding="utf-8").replace("datasets:\n  demo:", DATASETS)
    params.write_text(text, encoding="utf-8")
