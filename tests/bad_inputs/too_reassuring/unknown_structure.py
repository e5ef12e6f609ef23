"""How many cracks a map misses is not known, whatever test images the photo looks like: the command says so."""

import json

import numpy as np
from PIL import Image

COMMANDS = ["rm params.yaml", "cracks map wall.png --model starter --out maps"]  # the starter needs no project
NOT_KNOWN = "How many cracks are missed on structures like this one is not known; on external structures the model"
SAYS = (NOT_KNOWN, "An unmarked area may still have cracks.")
SAYS_NOT = ("most similar to this photo",)


def make(folder):
    Image.fromarray(np.random.default_rng(0).integers(90, 160, (300, 300, 3), np.uint8)).save(folder / "wall.png")


def check(folder):
    assert json.loads((folder / "maps" / "wall.json").read_text())["notes"][0].startswith(NOT_KNOWN)
    page = (folder / "maps" / "index.html").read_text()
    assert NOT_KNOWN in page
    assert "of the area cracked" not in page
