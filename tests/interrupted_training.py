"""Labelled images in memory for the tests of trainings that are killed and resumed."""

import numpy as np
import pandas as pd


class KilledError(Exception):
    """Simulates the end of the process."""


class Tiles:
    """Labelled square images, as trainings take them; every fourth is of another data set."""

    def __init__(self, draw_tile, seeds, size_px):
        self.labels = np.arange(len(seeds)) % 2 == 0
        names = ["theirs" if seed % 4 == 0 else "ours" for seed in seeds]
        self.rows = pd.DataFrame({"dataset": names, "row": seeds})
        self._tiles = [
            draw_tile(seed, cracked=cracked, size_px=size_px)
            for seed, cracked in zip(seeds, self.labels.tolist(), strict=True)
        ]
        self.sizes = np.full((len(seeds), 2), size_px)
        self.whole, self.positions = self, np.arange(len(seeds))

    def __len__(self):
        return len(self._tiles)

    def pixels(self, position):
        return self._tiles[position]


def ignore(step, values):
    """Report no epoch."""
