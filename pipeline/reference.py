"""Write the reference of the best model: statistics of training images, to compare production with.

--out has a row per image: dataset, photo, path, probability, the image statistics, embedding. If the photos are not
known, each group of near-duplicates counts as a photo with one image, which keeps the limits of drift wide.
"""

import json
import math
from pathlib import Path
from typing import Annotated

import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.files import replacing
from pipeline.models.classifier import Classifier
from pipeline.monitoring.observation import observe
from pipeline.params import Params
from pipeline.stage import run_main, stage_main


def choose_images(manifest: pd.DataFrame, train_on: tuple[str, ...], n_images: int) -> pd.DataFrame:
    """Return random rows of the train side, about n_images of each data set trained on, evenly over its photos.

    They are fewer if a data set has fewer, and a few more because the number per photo is rounded up.
    """
    chosen = []
    train = manifest[(manifest["split"] == "train") & manifest["dataset"].isin(train_on)]
    for _, rows in train.groupby("dataset"):
        has_photos = rows["photo"].notna().all()
        shuffled = rows.assign(photo=rows["photo"] if has_photos else rows["group"]).sample(frac=1, random_state=0)
        n_each = math.ceil(n_images / shuffled["photo"].nunique()) if has_photos else 1
        photos = shuffled["photo"].unique()[:n_images]
        chosen.append(shuffled[shuffled["photo"].isin(photos)].groupby("photo").head(n_each))
    return pd.concat(chosen, ignore_index=True)


def run(
    params: Params,
    *,
    manifest: Annotated[Path, "Parquet file of split"],
    datasets: Annotated[Path, "folder with a folder per data set"],
    models: Annotated[Path, "folder with a folder per candidate"],
    scores: Annotated[Path, "scores.json of evaluate"],
    out: Annotated[Path, "Parquet file to write"],
) -> None:
    """Write the reference of the best model."""
    best = json.loads(scores.read_text(encoding="utf-8"))["candidate"]
    rows = choose_images(pd.read_parquet(manifest), params.split.train_on, params.monitor.n_reference_images)
    observed = observe(Classifier.load(models / best), LabelledImages(rows, datasets), progress="reference")
    table = pd.concat([rows[["dataset", "photo", "path"]], observed], axis=1)
    with replacing(out) as partial:
        table.to_parquet(partial, index=False)


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
