"""The pictures of the README, and that of crack lines in docs/crack-map.md.

    python -m benchmarks.readme_images --project DIR --photos DIR --out docs/images

The project is a clone in which `dvc repro` has run with examples/params.metu.yaml. The photos are deck 7029 and
pavement 101 of SDNET2018, their tiles put together in their order, 18 to a row; the starter model was not trained on
them.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from pipeline.crack_maps import map_files
from pipeline.evaluation.examples import Picture, pictures_of, random_predictions
from pipeline.evaluation.plots import training_plots
from pipeline.files import replacing, write_text
from pipeline.params import Map
from pipeline.registry.model_lookup import STARTER, found_model

CROPS = {  # by photo: name of the picture; left, top, right, bottom
    "Decks-7029.jpg": ("crack-map.jpg", (1536, 0, 4608, 3584)),  # crack, finer cracks and kerb, 12 x 14 whole tiles
    "Pavements-101.jpg": ("crack-lines.jpg", (2304, 1536, 3584, 2304)),  # a part in sun and shade, 5 x 3 whole tiles
}
WIDTH_PX = 1200
JPEG_QUALITY = 80
PAD, TITLE_HEIGHT = 16, 24  # in SVG files, px
COLUMNS = 4  # of predictions
TRAINING_TITLE = (
    '<tspan fill="var(--series-0)">validation</tspan>, <tspan fill="var(--series-1)">training (dashed)</tspan>'
)

# the page names each colour twice: first as it is on a light page
_NAMED = re.findall(r"--([\w-]+): (#\w+);", files("pipeline").joinpath("page.html.j2").read_text())
COLOURS = dict(reversed(_NAMED))


def side_by_side(photo: Image.Image, crack_map: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return the box of a photo and of its map beside each other, over the legend that the map has below the photo."""
    legend = crack_map.crop((0, photo.height, photo.width, crack_map.height))
    legend = legend.resize((WIDTH_PX, round(legend.height * WIDTH_PX / legend.width)))
    width = WIDTH_PX // 2 - 4
    height = round(width * (box[3] - box[1]) / (box[2] - box[0]))
    picture = Image.new("RGB", (WIDTH_PX, height + legend.height), "white")
    for image, left in ((photo, 0), (crack_map, WIDTH_PX - width)):
        picture.paste(image.crop(box).resize((width, height)), (left, 0))
    picture.paste(legend, (0, height))
    return picture


def mapped(photo: Path) -> Image.Image:
    """Return the picture that `cracks map --model starter` makes of a photo."""
    with found_model("none", STARTER) as found, tempfile.TemporaryDirectory() as scratch:
        map_files.run(found, [photo], Path(scratch), Map(tile_px=256, overlap=0, model_mm_per_px=None))
        with Image.open(Path(scratch) / f"{photo.stem}.cracks.jpg") as picture:
            return picture.copy()


def write_maps(photos: Path, out: Path) -> None:
    """Write a part of each photo beside its map."""
    for name, (picture, box) in CROPS.items():
        with Image.open(photos / name) as photo, replacing(out / picture) as partial:
            side_by_side(photo, mapped(photos / name), box).save(partial, "JPEG", quality=JPEG_QUALITY)


def standalone(rows: Mapping[str, Sequence[str]]) -> str:
    """Return drawings made for the page as an SVG file on a light card: by title, rows of equally high ones."""
    drawn, top, right = "", PAD, 0
    for title, drawings in rows.items():
        drawn += f'<text x="{PAD}" y="{top + PAD}" fill="var(--text)">{title}</text>'
        left, top = PAD, top + TITLE_HEIGHT
        for drawing in drawings:
            width, height = (round(float(side)) for side in re.findall(r'viewBox="0 0 (\S+) (\S+)"', drawing)[0])
            place = f'<svg x="{left}" y="{top}" width="{width}" height="{height}">'
            drawn += re.sub("<svg[^>]*>", place, drawing, count=1)
            left += width + PAD
        top, right = top + height + PAD, max(right, left)
    content = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{right}" '
        f'height="{top}" viewBox="0 0 {right} {top}"><style>text {{ font-family: system-ui, sans-serif !important }}'
        f'</style><rect width="{right}" height="{top}" rx="8" fill="var(--card)"/>{drawn}</svg>\n'
    )
    return re.sub(r"var\(--([\w-]+)\)", lambda name: COLOURS[name[1]], content)


def predictions_grid(pictures: Sequence[Picture], threshold: float, title: str) -> Figure:
    """Return the pictures, each with its label, the probability of a crack and whether the model is right."""
    n_rows = -(-len(pictures) // COLUMNS)
    figure = Figure((9, 0.4 + 2.6 * n_rows), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(n_rows, COLUMNS, subplot_kw={"frame_on": False}, squeeze=False).flat:
        axes.set(xticks=[], yticks=[])
    for axes, picture in zip(figure.axes, pictures, strict=False):
        is_right = (picture.probability >= threshold) == (picture.label == "crack")
        share = picture.probability
        shown = "<0.001" if share < 0.001 else ">0.999" if share > 0.999 else f"{share:.3f}"
        words = f"{'right' if is_right else 'WRONG'}: label {picture.label},\nprobability of a crack {shown}"
        axes.imshow(picture.pixels)
        axes.set_xlabel(words, color=COLOURS["good" if is_right else "bad"])
    return figure


def write_images_of_run(reports: Path, datasets: Path, out: Path) -> None:
    """Write training.svg and predictions.jpg of a project's run."""
    scores = json.loads((reports / "scores.json").read_text())
    histories = {path.stem: pd.read_csv(path) for path in sorted((reports / "histories").glob("*.csv"))}
    plots = {f"{name}: {TRAINING_TITLE}": training_plots(name, history) for name, history in histories.items()}
    write_text(out / "training.svg", standalone({title: list(drawn.values()) for title, drawn in plots.items()}))
    rows, threshold = pd.read_parquet(reports / "predictions.parquet"), scores["decision"]["threshold"]
    test = rows[rows["split"] == "test"]
    wrong = (test["label"] == "crack") != (test["probability"] >= threshold)
    chosen = random_predictions(test, threshold)
    n_wrong, n_shown_wrong = wrong.sum(), wrong[chosen.index].sum()
    n_right, n_shown_right = len(test) - n_wrong, len(chosen) - n_shown_wrong
    title = (
        f"{n_shown_right} of {n_right:,} right predictions on test, at random, and {n_shown_wrong} of {n_wrong:,} wrong"
    )
    figure = predictions_grid(list(pictures_of(chosen, datasets)), threshold, title)
    with replacing(out / "predictions.jpg") as partial:
        figure.savefig(partial, format="jpeg", pil_kwargs={"quality": JPEG_QUALITY})


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, required=True, help="folder in which `dvc repro` has run")
    parser.add_argument("--photos", type=Path, required=True, help="folder of Decks-7029.jpg and Pavements-101.jpg")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    args = parser.parse_args()
    write_images_of_run(args.project / "reports", args.project / "data/datasets", args.out)
    write_maps(args.photos, args.out)


if __name__ == "__main__":
    main()
