"""The labels of a data set, ranked by how likely they are wrong: as a table, on the page of an audit, and to review."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.contract_page import SuspectLabels, captioned
from pipeline.data.images import PackedImages

N_SHOWN = 100  # on the page


def doubts(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the probability of the label that each image, cracked or not, does not have, (n,)."""
    return np.where(labels, 1 - probabilities, probabilities)


def rank(inventory: pd.DataFrame, probabilities: npt.NDArray[np.float64], manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the images with the most doubtful label first, by their rows in the inventory.

    `probabilities`, of a crack, (n,), are those of each row. `manifest`, with the columns sha256 and split, tells the
    `side` of an image, which is empty where it has none.
    """
    columns = ["path", "batch", "label", "photo", "sha256", "reviewer"]
    sides = dict(zip(manifest["sha256"], manifest["split"], strict=True))
    table = inventory[columns].assign(
        crack_probability=probabilities.round(6),
        doubt=doubts((inventory["label"] == "crack").to_numpy(), probabilities).round(6),
        side=[sides.get(sha256, "") for sha256 in inventory["sha256"]],
    )
    return table.sort_values("doubt", ascending=False, kind="stable")


def first_to_review(ranking: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the first n images of a ranking whose label no person has reviewed, each content once."""
    return ranking[ranking["reviewer"].isna()].drop_duplicates("sha256").head(n)


def suspects(ranking: pd.DataFrame, images: PackedImages, sentences: Sequence[str]) -> SuspectLabels:
    """Return what the page shows: the first images that no person has reviewed, and the sentences."""
    shown = first_to_review(ranking, N_SHOWN)
    sides = shown["side"].map(lambda side: side and f", {side} side")
    shown = shown.assign(caption=shown["crack_probability"].map("probability of a crack {:.2f}".format) + sides)
    tiles = tuple(captioned(shown.loc[row], images.pixels(int(row))) for row in shown.index.to_numpy())
    return SuspectLabels(tiles, (*sentences, *sentences_on_sides(shown)))


def sentences_on_sides(chosen: pd.DataFrame) -> list[str]:
    """Return on which sides of the split the chosen images are, and what correcting their labels changes."""
    counts = chosen.loc[chosen["side"] != "", "side"].value_counts()
    listed = ", ".join(f"{n:,} {side}" for side, n in counts.items())
    warning = " A label corrected on another side than train changes what models are measured with."
    is_train = set(counts.index) <= {"train"}
    return [f"Sides of the first {len(chosen):,}: {listed}.{'' if is_train else warning}"] if listed else []
