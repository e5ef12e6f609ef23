"""Decode every image of a data set, describe it in the inventory and pack it; list unusable files in the quarantine.

Writes into --out: images.bin (the concatenated files), inventory.parquet (a row per image, in the same order) and
quarantine.csv (batch, path, reason, is_image: the file is readable but not used, is_left_out: it is no image of the
user's, such as a note or a thumbnail).
"""

from pathlib import Path
from typing import Annotated

from pipeline.data.dataset_reader import pack_dataset
from pipeline.params import Params, named
from pipeline.stage import run_main, stage_main


@stage_main
def main(
    params: Params,
    *,
    dataset: Annotated[str, "its name in params.yaml"],
    out: Annotated[Path, "folder to write"],
) -> None:
    """Write the packed images, the inventory and the quarantine of a data set."""
    pack_dataset(named(params.datasets, dataset, "data set"), params.ingest, out)


if __name__ == "__main__":
    run_main(main)
