"""Tiles of an orthophoto where nothing was photographed are left out, and are no intact or odd concrete."""

import csv
import json

import numpy as np
from PIL import Image

COMMANDS = ["cracks map ortho.png --model starter --out maps"]
SAYS = ("1 photos mapped, 0 failed",)


def make(folder):
    pixels = np.zeros((512, 768, 4), np.uint8)
    pixels[:, :256, :3] = np.random.default_rng(0).integers(90, 160, (512, 256, 1))
    pixels[:, :256, 3] = 255
    Image.fromarray(pixels).save(folder / "ortho.png")


def check(folder):
    with (folder / "maps" / "ortho.tiles.csv").open() as file:
        assert [(row["row"], row["col"]) for row in csv.DictReader(file)] == [("0", "0"), ("1", "0")]
    report = json.loads((folder / "maps" / "ortho.json").read_text())
    assert report["share_cracked"] + report["share_review"] in (0, 1, 0.5)
    assert "66.7 % of the picture is transparent: tiles without photo are left out." in report["notes"]
