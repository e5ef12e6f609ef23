"""What concrete the starter model knows: writes starter_concrete.npz beside this file.

    python -m pipeline.starter_concrete --datasets data/datasets --manifest data/manifest.parquet

takes the data of examples/params.metu-and-sdnet.yaml after `dvc repro split`.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.acquaintance import acquaint
from pipeline.find_model import STARTER, STARTER_CONCRETE, found_model
from pipeline.images import LabelledImages
from pipeline.served import ServedModel, served_outputs
from pipeline.stage import run_main

log = logging.getLogger(__name__)


def _scored(model: ServedModel, tested: pd.DataFrame, datasets: Path) -> pd.DataFrame:
    """Return `tested` with the probability of each crack; that of intact images is not asked for."""
    tested = tested.reset_index(drop=True).assign(probability=np.nan)
    cracks = tested[tested["label"] == "crack"]
    for positions, outputs in served_outputs(model, LabelledImages(cracks, datasets), progress="scoring"):
        tested.loc[cracks.index[positions], "probability"] = outputs["probability"]
    return tested


def main() -> None:
    """Write what the starter model knows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--manifest", type=Path, required=True, help="Parquet file of split")
    args = parser.parse_args()
    manifest = pd.read_parquet(args.manifest)
    with found_model(STARTER, STARTER) as found:
        model = found.load()
    tested = _scored(model, manifest[manifest["split"] == "test"], args.datasets)
    acquaint(model, manifest, tested, args.datasets).save(STARTER_CONCRETE)
    log.info("%s: %d bytes", STARTER_CONCRETE, STARTER_CONCRETE.stat().st_size)


if __name__ == "__main__":
    run_main(main)
