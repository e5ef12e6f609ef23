"""Measures the false alarm rate of the drift test, and how many photos it needs to detect another structure.

    python -m benchmarks.drift --metu metu-subset.zip --sdnet sdnet-subset.zip --plot docs/monitoring.svg

Embeds both with the settings of examples/params.metu-and-sdnet.yaml, and compares windows of random photos with other
photos. Windows of the same data set should raise alarms at the stated rate, windows of the other data set always. The
last row of the first table counts every tile as a photo of its own, as a test that ignores photos would.
"""

import argparse
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.leave_one_photo_out import prepared
from pipeline.data.images import INVENTORY_FILE, PackedImages, decode, image_statistics
from pipeline.data.path_metadata import photo_of
from pipeline.monitoring.drift import alpha_of, compare
from pipeline.monitoring.prediction_log import IMAGE_STATISTICS, N_DIMENSIONS, embeddings_of
from pipeline.params import Backbone, Monitor
from pipeline.training.embedder import embed_in_shards

Pair = tuple[pd.DataFrame, pd.DataFrame]  # reference and window

SDNET_PHOTO = r"([^/]+)-\d+\.jpg$"
N_REFERENCE_PHOTOS = 9  # of SDNET's fourteen, as in the example; the other five are a window
N_REFERENCE_IMAGES = 1000
N_NAIVE_WINDOWS = 20  # of thousands of tiles each
SIZES = (5, 6, 8, 10, 14)  # photos in a window; SDNET's are fourteen
CHUNK_IMAGES = 1024


def statistics_of(archive: Path, every: int) -> pd.DataFrame:
    """Return path, photo and image statistics of one image in `every` of an archive; the embedding is all zeros.

    An image whose name does not contain its photo is a photo of its own.
    """
    with zipfile.ZipFile(archive) as opened:
        paths = sorted(name for name in opened.namelist() if name.endswith(".jpg"))[::every]
        statistics = pd.DataFrame([image_statistics(decode(opened.read(path))) for path in paths])
    photos = [photo_of(path, SDNET_PHOTO) or path for path in paths]
    return statistics.assign(path=paths, photo=photos, embedding=list(np.zeros((len(paths), N_DIMENSIONS), np.float32)))


def tiles_of(name: str, backbone: Backbone, folder: Path) -> pd.DataFrame:
    """Return photo (or group of near-duplicates if unknown), image statistics and embedding of a data set's images."""
    manifest = pd.read_parquet(folder / "manifest.parquet")
    mine = manifest[manifest["dataset"] == name].sort_values("row")
    features = embed_in_shards(backbone, PackedImages(folder / "datasets" / name), folder / "unfinished" / name, name)
    chunks = [embeddings_of(features[start : start + CHUNK_IMAGES]) for start in range(0, len(features), CHUNK_IMAGES)]
    tiles = pd.read_parquet(folder / "datasets" / name / INVENTORY_FILE)[["path", *IMAGE_STATISTICS]]
    photos = mine["photo"].fillna(mine["group"]).to_numpy()
    return tiles.assign(photo=photos, embedding=list(np.concatenate(chunks)))


def photos_at_random(tiles: pd.DataFrame, rng: np.random.Generator) -> npt.NDArray[np.str_]:
    """Return the names of all photos in random order."""
    return rng.permutation(np.unique(tiles["photo"].to_numpy(str)))


def of_photos(tiles: pd.DataFrame, photos: npt.NDArray[np.str_]) -> pd.DataFrame:
    """Return the tiles of some photos."""
    return tiles[tiles["photo"].isin(photos)]


def one_tile_each(tiles: pd.DataFrame) -> pd.DataFrame:
    """Return one tile of each photo at random."""
    return tiles.sample(frac=1, random_state=0).drop_duplicates("photo")


def same_kind(tiles: pd.DataFrame, n_reference: int, n_photos: int, n_windows: int) -> Iterator[Pair]:
    """Yield n_reference photos at random, and a window of n_photos others."""
    rng = np.random.default_rng(0)
    for _ in range(n_windows):
        photos = photos_at_random(tiles, rng)
        yield of_photos(tiles, photos[:n_reference]), of_photos(tiles, photos[n_reference : n_reference + n_photos])


def other_kind(
    reference: pd.DataFrame, n_reference: int, seen: pd.DataFrame, n_photos: int, n_windows: int
) -> Iterator[Pair]:
    """Yield n_reference photos at random of one data set, and a window of n_photos of another."""
    rng = np.random.default_rng(0)
    for _ in range(n_windows):
        photos = photos_at_random(reference, rng)[:n_reference], photos_at_random(seen, rng)[:n_photos]
        yield of_photos(reference, photos[0]), of_photos(seen, photos[1])


def tiles_as_photos(pairs: Iterator[Pair]) -> Iterator[Pair]:
    """Yield the same windows with every tile as a photo of its own."""
    for reference, seen in pairs:
        yield reference.assign(photo=reference["path"]), seen.assign(photo=seen["path"])


def alarm_rate(pairs: Iterator[Pair], monitor: Monitor, what: str) -> float:
    """Return the share of the windows that alarm."""
    return float(np.mean([compare(*pair, monitor).has_drifted for pair in tqdm(pairs, desc=what, unit=" windows")]))


def print_rates(scenarios: dict[str, Iterator[Pair]], monitor: Monitor) -> None:
    """Print the alarm rate for each kind of window, and the alarms per month."""
    print("| window | alarms of windows | a month |\n| --- | --: | --: |")
    for what, pairs in scenarios.items():
        rate = alarm_rate(pairs, monitor, what)
        print(f"| {what} | {rate:.3f} | {rate * monitor.windows_per_month:.2f} |", flush=True)


def draw_rates(path: Path, metu: pd.DataFrame, sdnet: pd.DataFrame, monitor: Monitor, n_windows: int) -> None:
    """Plot the share of windows that alarm over their number of photos into the SVG file `path`."""
    kinds: dict[str, Callable[[int], Iterator[Pair]]] = {
        "SDNET, after training on METU": lambda n: other_kind(metu, N_REFERENCE_IMAGES, sdnet, n, n_windows),
        "single tiles of SDNET": lambda n: other_kind(metu, N_REFERENCE_IMAGES, one_tile_each(sdnet), n, n_windows),
        "METU itself": lambda n: same_kind(metu, N_REFERENCE_IMAGES, n, n_windows),
    }
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, pairs in kinds.items():
        axes.plot(SIZES, [alarm_rate(pairs(n), monitor, f"{name}, {n}") for n in SIZES], marker="o", label=name)
    axes.axhline(alpha_of(monitor), color="black", linestyle=":", label=f"stated: {alpha_of(monitor):g} of windows")
    axes.set(xlabel="photos in the window", ylabel="windows that alarm", ylim=(-0.03, 1.03))
    axes.set_xticks(list(SIZES))
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    with matplotlib.rc_context({"svg.hashsalt": "drift"}):  # the same file for the same numbers
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metu", type=Path, required=True, help="archive of METU's layout")
    parser.add_argument("--sdnet", type=Path, required=True, help="archive of SDNET2018's layout")
    parser.add_argument("--windows", type=int, default=400, help="windows of each kind (default: 400)")
    parser.add_argument("--plot", type=Path, help="SVG file for a plot of the alarm rates")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        params = prepared(args.metu.absolute(), args.sdnet.absolute(), folder)
        (backbone,) = params.backbones.values()
        metu, sdnet = one_tile_each(tiles_of("metu", backbone, folder)), tiles_of("sdnet", backbone, folder)
    monitor = params.monitor
    n = args.windows
    print(f"stated: {alpha_of(monitor):g} of windows, {monitor.false_alarms_per_month:g} a month\n")
    print_rates(
        {
            "five photos of SDNET against nine others": same_kind(sdnet, N_REFERENCE_PHOTOS, 5, n),
            "a tile each of five photos of SDNET against nine others": same_kind(
                one_tile_each(sdnet), N_REFERENCE_PHOTOS, 5, n
            ),
            "five images of METU against 1,000 others": same_kind(metu, N_REFERENCE_IMAGES, 5, n),
            "five photos of SDNET against nine others, every tile as a photo": tiles_as_photos(
                same_kind(sdnet, N_REFERENCE_PHOTOS, 5, N_NAIVE_WINDOWS)
            ),
        },
        monitor,
    )
    decks, pavements = (sdnet[sdnet["path"].str.startswith(surface)] for surface in ("Decks", "Pavements"))
    print()
    print_rates(
        {
            "five photos of SDNET against METU": other_kind(metu, N_REFERENCE_IMAGES, sdnet, 5, n),
            "five decks of SDNET against METU": other_kind(metu, N_REFERENCE_IMAGES, decks, 5, n),
            "five pavements of SDNET against METU": other_kind(metu, N_REFERENCE_IMAGES, pavements, 5, n),
            "five images of METU against nine photos of SDNET": other_kind(sdnet, N_REFERENCE_PHOTOS, metu, 5, n),
            "50 images of METU against nine photos of SDNET": other_kind(sdnet, N_REFERENCE_PHOTOS, metu, 50, n),
            "five pavements of SDNET against its decks": other_kind(decks, len(decks), pavements, 5, n),
        },
        monitor,
    )
    if args.plot:
        draw_rates(args.plot, metu, sdnet, monitor, n)


if __name__ == "__main__":
    main()
