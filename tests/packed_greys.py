"""A data set of plain greys, for tests of what is made of single images."""

import numpy as np
import pandas as pd

from pipeline.data.images import IMAGES_FILE, INVENTORY_FILE


def write_greys(folder, levels, encode):
    """Write a data set of plain greys as `ingest` leaves it."""
    folder.mkdir()
    contents = [encode(np.full((14, 14, 3), level, np.uint8), "PNG") for level in levels]
    (folder / IMAGES_FILE).write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    offsets = np.cumsum([0, *lengths[:-1]])
    table = pd.DataFrame({"height": 14, "width": 14, "offset": offsets, "n_bytes": lengths})
    table.to_parquet(folder / INVENTORY_FILE)


def greys_scored(*rows):
    """A table of predictions from (label, probability), the nth of the nth image of the data set `ours`, on test."""
    table = pd.DataFrame(rows, columns=["label", "probability"])
    paths = [f"{row}.png" for row in range(len(table))]
    return table.assign(dataset="ours", split="test", row=np.arange(len(table)), path=paths)
