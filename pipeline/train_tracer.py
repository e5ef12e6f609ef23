"""Provide the tracer of crack lines that is registered with the model, and measure it.

With `tracer` in params.yaml, one is trained on the intact images of the train side, on which cracks are drawn; without,
it is the one that ships with the project. Writes its graph and weights into --out; --metrics, F1 of its lines on
cracks drawn on intact images of the test side.
"""

import logging
import shutil
from pathlib import Path
from typing import Annotated

import pandas as pd

from pipeline.crack_lines.tracer import Tracer
from pipeline.data.training_images import images_of_side
from pipeline.evaluation.line_scores import drawn_images, drawn_line_scores
from pipeline.files import name_by_hash, replacing_folder, write_json
from pipeline.models.model_files import TRACER_FILE, TRACER_WEIGHTS
from pipeline.params import Params
from pipeline.stage import run_main, stage_main
from pipeline.training.drawn_cracks import grey_image

log = logging.getLogger(__name__)


def run(
    params: Params,
    *,
    datasets: Annotated[Path, "folder with a folder per data set"],
    manifest: Annotated[Path, "Parquet file of split"],
    checkpoints: Annotated[Path, "folder for unfinished work"],
    out: Annotated[Path, "folder to write"],
    metrics: Annotated[Path, "JSON file to write"],
) -> None:
    """Train the tracer, or copy the one that ships, and measure it."""
    rows = pd.read_parquet(manifest)
    train, test = (images_of_side(rows[rows["label"] == "intact"], side, datasets) for side in ("train", "test"))
    drawn = drawn_images(test)  # an error, if there is no image, comes before half an hour of training
    with replacing_folder(out) as folder:
        if params.tracer is None:
            for path in (TRACER_FILE, TRACER_WEIGHTS):
                shutil.copy(path, folder)
        else:
            from pipeline.training.tracer_fitting import fit_tracer  # imports TensorFlow

            checkpoint = checkpoints / name_by_hash(params.tracer.model_dump_json(), manifest.read_bytes())
            graph = folder / TRACER_FILE.name
            fit_tracer(lambda number: grey_image(train.pixels(number)), len(train), params.tracer, checkpoint, graph)
    scores = drawn_line_scores(Tracer(out / TRACER_FILE.name), drawn)
    write_json(metrics, {"lines": round(scores["f1"], 4)})  # more makes `dvc metrics show` wider than a terminal
    found = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
    shutil.rmtree(checkpoints, ignore_errors=True)
    log.info("tracer: %s of crack lines on %d drawn images", found, len(drawn))


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
