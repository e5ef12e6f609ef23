"""Decode every image of a data set, describe it in the inventory and pack it; list unusable files in the quarantine.

Writes into --out: images.bin (the concatenated files), inventory.parquet (a row per image, in the same order) and
quarantine.csv (batch, path, reason, is_image: the file is readable but not used).
"""

from pathlib import Path

from pipeline.data.dataset_reader import pack_dataset
from pipeline.params import load_params, named
from pipeline.stage import run_main, stage_parser


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--dataset", required=True, help="its name in params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    params = load_params(args.params)
    pack_dataset(named(params.datasets, args.dataset, "data set"), params.ingest, args.out)


if __name__ == "__main__":
    run_main(main)
