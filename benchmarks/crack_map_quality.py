"""Measures how well crack maps of real photos show where the cracks are.

    python -m benchmarks.crack_map_quality --photos DIR --model "METU alone=models/probe-lite0" \
        --model "METU and SDNET=starter" --plot docs/crack-map.svg

DIR has photos and tiles.csv: photo, row, col, x, y, size, cracked. Prints for each model and photo the AUROC over
tiles, and the recall of cracked tiles when the tiles are inspected in the order of their probability; plots the latter.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from pipeline.crack_maps.crack_map import CrackMapper
from pipeline.data.photos import read_photo
from pipeline.files import replacing
from pipeline.params import Map
from pipeline.registry.model_lookup import found_model

SHARES = (0.05, 0.1, 0.2, 0.5)  # of the tiles that are inspected


def scored_tiles(truth: pd.DataFrame, photos: Path, wanted: str) -> pd.DataFrame:
    """Return `truth` with the probability that a model gives each tile."""
    (tile_px,) = truth["size"].unique()
    with found_model("none", wanted) as found:
        mapper = CrackMapper(found.load(), Map(tile_px=int(tile_px), overlap=0, model_mm_per_px=None))
    maps = [
        mapper.map(read_photo((photos / str(name)).read_bytes()).pixels).tiles.assign(photo=name)
        for name in truth["photo"].unique()
    ]
    columns = ["photo", "x", "y", "probability"]
    return truth.merge(pd.concat(maps)[columns], on=["photo", "x", "y"], validate="one_to_one")


def recall_curve(tiles: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the share of the cracked tiles among the first 0, 1, 2, ... tiles by probability, (n + 1,)."""
    cracked = tiles.sort_values("probability", ascending=False, kind="stable")["cracked"].to_numpy()
    return np.concatenate([[0.0], np.cumsum(cracked) / cracked.sum()])


def plot(curves: dict[tuple[str, str], npt.NDArray[np.float64]], path: Path) -> None:
    """Plot the recall curves as SVG, with a panel per photo; equal inputs give equal files."""
    photos = list(dict.fromkeys(photo for _, photo in curves))
    with mpl.rc_context({"svg.hashsalt": "crack-map", "font.size": 10}):
        figure = Figure((4.2 * len(photos), 3.6), layout="constrained")
        for axes, photo in zip(np.ravel(figure.subplots(1, len(photos), sharey=True)), photos, strict=True):
            axes.plot([0, 1], [0, 1], ":", color="grey", label="in random order")
            for (model, of), curve in curves.items():
                if of == photo:
                    axes.plot(np.linspace(0, 1, len(curve)), curve, label=model)
            axes.set(title=photo, xlabel="share of tiles looked at, likeliest first", xlim=(0, 1), ylim=(0, 1.02))
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("share of cracked tiles among them")
        figure.axes[0].legend(loc="lower right")
        with replacing(path) as partial:
            figure.savefig(partial, format="svg", facecolor="white", metadata={"Date": None})


def main() -> None:
    """Run the benchmark from its command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos and tiles.csv")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=MODEL", help="folder or `starter`")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    args = parser.parse_args()
    truth = pd.read_csv(args.photos / "tiles.csv")
    curves = {}
    print("| model | photo | tiles | cracked | AUROC |" + "".join(f" first {share:.0%} |" for share in SHARES))
    print("| --- | --- | --: | --: | --: |" + " --: |" * len(SHARES))
    for name, wanted in (model.split("=", 1) for model in args.model):
        for photo, tiles in scored_tiles(truth, args.photos, wanted).groupby("photo"):
            curve = curves[name, str(photo)] = recall_curve(tiles)
            seen = "".join(f" {curve[round(share * len(tiles))]:.2f} |" for share in SHARES)
            auroc = roc_auc_score(tiles["cracked"], tiles["probability"])
            print(f"| {name} | {photo} | {len(tiles)} | {tiles['cracked'].sum()} | {auroc:.3f} |{seen}", flush=True)
    if args.plot:
        plot(curves, args.plot)


if __name__ == "__main__":
    main()
