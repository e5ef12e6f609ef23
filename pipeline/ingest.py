"""Read a data set once: every image is decoded, described in the inventory and packed; the rest goes to quarantine.

Writes into --out: images.bin (the original bytes end to end), inventory.parquet (a row an image, in the same order)
and quarantine.csv (batch, path, reason, is_image: held back though it can be read).
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
