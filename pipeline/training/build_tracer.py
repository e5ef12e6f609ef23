"""Train the tracer that ships with the project, as the stage `train_tracer` trains others.

    python -m pipeline.training.build_tracer --intact metu.zip sdnet-subset.zip sdnet-more.zip

The archives are those of METU and SDNET2018. Only their intact images are used; cracks are drawn on them. It takes
half an hour on a core. The starter model has this tracer as a branch: train it again afterwards, as
docs/starter-model.md says.
"""

import argparse
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.models.model_files import TRACER_FILE
from pipeline.params import DrawnCracks
from pipeline.stage import run_main
from pipeline.training.drawn_cracks import GreyImage

SETTINGS = DrawnCracks(kind="drawn_cracks", n_steps=4500, seed=0)
INTACT = ("Negative", "Non-cracked")  # folders of intact images
TEST_PHOTOS = ("7029", "101")  # of SDNET2018, with which maps are measured


def read_intact(archives: list[Path]) -> list[GreyImage]:
    """Return the intact images of archives of METU and SDNET2018, grey, without those of TEST_PHOTOS."""
    images = []
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                place = Path(name)
                if place.parent.name in INTACT and place.suffix and place.stem.split("-")[0] not in TEST_PHOTOS:
                    images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L")))
    return images


def main() -> None:
    """Run from the command line."""
    from pipeline.training.tracer_fitting import fit_tracer  # imports TensorFlow

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intact", type=Path, nargs="+", required=True, help="archives with intact images")
    images = read_intact(parser.parse_args().intact)
    with tempfile.TemporaryDirectory() as scratch:
        fit_tracer(images.__getitem__, len(images), SETTINGS, Path(scratch) / "checkpoint", TRACER_FILE)


if __name__ == "__main__":
    run_main(main)
