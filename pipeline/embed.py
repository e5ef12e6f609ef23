"""Send every image once through a frozen backbone and keep its features.

Writes into --out a file DATASET.npy for each data set: float32, (n_images, n_features), rows as in the inventory.
"""

from pathlib import Path

import numpy as np

from pipeline.files import replacing_folder
from pipeline.images import PackedImages
from pipeline.network import build_embedder, run_in_batches
from pipeline.params import Backbone, load_params, named
from pipeline.stage import run_main, stage_parser


def run(backbone: Backbone, names: list[str], datasets: Path, out: Path) -> None:
    """Write the features of the named data sets into the folder `out`."""
    embedder = build_embedder(backbone)
    with replacing_folder(out) as folder:
        for name in names:
            images = PackedImages(datasets / name)
            features = np.empty((len(images.sizes), embedder.output["features"].shape[-1]), np.float32)
            for rows, outputs in run_in_batches(embedder, images, progress=f"embedding {name}"):
                features[rows] = outputs["features"]
            np.save(folder / f"{name}.npy", features)


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--backbone", required=True, help="its name in params.yaml")
    parser.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    params = load_params(args.params)
    run(named(params.backbones, args.backbone, "backbone"), list(params.datasets), args.datasets, args.out)


if __name__ == "__main__":
    run_main(main)
