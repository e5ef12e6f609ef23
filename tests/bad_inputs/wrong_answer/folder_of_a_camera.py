"""Every photo of a folder as people have it has a row, those that cannot be read with the reason; nothing else has."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

COMMANDS = ["cracks predict photos --model starter --out scores.csv"]
SAYS = [
    "2 files: hidden, or in a hidden folder",
    "1 file: a thumbnail, a deleted file or another file of the system",
    "1 file: a picture that `cracks map` has drawn",
    "1 file: not a picture (.xml)",
]


def make(folder: Path) -> None:
    rng = np.random.default_rng(0)
    grey = np.repeat(np.repeat(rng.integers(110, 190, (16, 16)), 8, axis=0), 8, axis=1)
    grey[60:64] = 25
    photos = folder / "photos"
    for below in ("", ".Trash-1000", ".ipynb_checkpoints", "@eaDir/a.png", "../deck"):
        (photos / below).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.astype(np.uint8)).save(photos / below / "a.png")
    (photos / "linked").symlink_to("../deck")
    for name, bits in (("b.tif", 12), ("c.png", 10)):  # values of so many bits in files of 16
        Image.fromarray((grey << (bits - 8)).astype(np.uint16)).save(photos / name)
    for name in ("d.jfif", "e.jpe", "a.cracks.jpg"):
        Image.fromarray(grey.astype(np.uint8)).save(photos / name, "JPEG", quality=100)
    (photos / "f.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "g.gif").write_bytes(b"GIF89a")
    (photos / "a.png.xml").write_text("<photo/>")


def check(folder: Path) -> None:
    with (folder / "scores.csv").open(encoding="utf-8") as file:
        rows = {Path(row["path"]).relative_to("photos").as_posix(): row for row in csv.DictReader(file)}
    assert list(rows) == ["a.png", "b.tif", "c.png", "d.jfif", "e.jpe", "f.HEIC", "g.gif", "linked/a.png"]
    assert "HEIC picture, which is not read. Convert it" in rows["f.HEIC"]["error"]
    assert "GIF picture, which is not read. Convert it" in rows["g.gif"]["error"]
    probabilities = {name: float(row["probability"]) for name, row in rows.items() if not row["error"]}
    for name, probability in probabilities.items():
        assert abs(probability - probabilities["a.png"]) < 0.02, name
