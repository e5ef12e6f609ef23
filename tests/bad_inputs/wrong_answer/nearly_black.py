"""Images that the model cannot judge, nearly black or nearly white, are for review, and the row says why."""

import csv

import numpy as np
from PIL import Image

COMMANDS = ["cracks predict black.png white.png --model starter --out scores.csv"]
SAYS = ("2 review", "How many cracks are missed on structures like this one is not known")


def make(folder):
    noise = np.random.default_rng(0).integers(0, 12, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(folder / "black.png")
    Image.fromarray(255 - noise).save(folder / "white.png")


def check(folder):
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["label"], row["reason"]) for row in rows} == {("review", "unlike the training images")}
    assert max(float(row["probability"]) for row in rows) < 0.01  # which alone would be called intact
