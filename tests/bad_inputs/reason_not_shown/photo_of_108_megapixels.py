"""A photo above the limit of a data set is named with the limit and its setting, and is no attack."""

from pathlib import Path

from PIL import Image

COMMANDS = ["cracks audit set"]
EXIT_CODE = 2
SAYS = ["12000 x 9000 px is more than 89 megapixels. Raise ingest.max_image_megapixels in params.yaml, or divide it"]
SAYS_NOT = ["bomb", "attack"]


def make(folder: Path) -> None:
    (folder / "set" / "Positive").mkdir(parents=True)
    Image.new("L", (12000, 9000), 128).save(folder / "set" / "Positive" / "deck.jpg")
