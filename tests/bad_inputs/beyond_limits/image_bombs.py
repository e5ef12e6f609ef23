"""Small images that would take minutes to decode are passed over at once."""

from pathlib import Path

from image_bombs import jpeg_of_scans

COMMANDS = ["cracks audit set"]
EXIT_CODE = 2
MAX_SECONDS = 60
SAYS = ["error: set contains no image that can be read"]


def make(folder: Path) -> None:
    (folder / "set/Positive").mkdir(parents=True)
    (folder / "set/Positive/a.jpg").write_bytes(jpeg_of_scans(200_000, size_px=2000))
