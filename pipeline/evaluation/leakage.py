"""What leakage is worth: the same plain model, trained and scored on the leak-free split and on a random one.

It is scored on the validation side: the test side is for the model that was chosen. Features are those that `embed`
has left, so the random split scores some images on features in the training precision.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from pipeline.data.training_images import TRAINING_SIDES
from pipeline.training.features import features_of

MAX_IMAGES = 20_000  # keeps both fits at seconds; whole groups are drawn, so that copies stay as frequent
SEED = 0

Sides = npt.NDArray[np.object_]  # (n,), train or validation


def sample_groups(images: pd.DataFrame) -> pd.DataFrame:
    """Return the images of random groups, about MAX_IMAGES of them, or all where there are not so many."""
    groups = images["group"].drop_duplicates().sample(frac=1, random_state=SEED)
    sizes = images["group"].value_counts().loc[groups]
    return images[images["group"].isin(sizes.index[sizes.cumsum() <= MAX_IMAGES])]


def random_sides(images: pd.DataFrame) -> Sides:
    """Return a random side of each image by itself, as many of each label on each side as there were."""
    rng = np.random.default_rng(SEED)
    return images.groupby("label")["split"].transform(rng.permutation).to_numpy(object)


def _scores(features: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_], sides: Sides) -> dict[str, float]:
    train, scored = sides == "train", sides == "validation"
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    standardised = (features - mean) / np.where(std > 0, std, 1)
    model = LogisticRegression(max_iter=2000).fit(standardised[train], labels[train])
    called = model.predict(standardised[scored])
    wrong = called != labels[scored]
    return {
        "n_errors": int(wrong.sum()),
        "errors_per_thousand": 1000 * float(wrong.mean()),
        "f1": float(f1_score(labels[scored], called, zero_division=0.0)),
    }


def compare_splits(images: pd.DataFrame, features: npt.NDArray[np.float32]) -> dict[str, float | int]:
    """Return the scores of logistic regression on both splits, and how far the random one leaks.

    The random one assign the same images, each by itself, to sides of the same sizes.

    Args:
        images: a row an image: label, group, split (train or validation; both labels on train).
        features: of the same images, float32, (n, n_features).

    Returns:
        n_images, n_scored; of both splits (`leak_free_…`, `random_…`) n_errors, errors_per_thousand and f1; of the
        random one n_scored_with_copy_in_train and share_of_scored_with_copy_in_train: images of whose group (copies,
        tiles of one photo) another one is in train.
    """
    labels, leak_free = (images["label"] == "crack").to_numpy(), images["split"].to_numpy()
    random = random_sides(images)
    groups = images["group"].to_numpy()
    leaked = np.isin(groups[random == "validation"], groups[random == "train"])
    scores = {"leak_free": _scores(features, labels, leak_free), "random": _scores(features, labels, random)}
    return {
        "n_images": len(images),
        "n_scored": len(leaked),
        **{f"{split}_{name}": value for split, values in scores.items() for name, value in values.items()},
        "n_scored_with_copy_in_train": int(leaked.sum()),
        "share_of_scored_with_copy_in_train": float(leaked.mean()),
    }


def leakage_effect(manifest: pd.DataFrame, features_folder: Path) -> dict[str, float | int]:
    """Return `compare_splits` of the images that training reads.

    Args:
        manifest: of `split`, the rows of the data sets trained on.
        features_folder: of one backbone.
    """
    assigned = manifest[manifest["split"].isin(TRAINING_SIDES)]
    images = sample_groups(assigned).sort_values(["dataset", "row"])
    # sums over many rows overflow where features are kept in half precision
    features = features_of(images, features_folder).astype(np.float32)
    return {"n_available": len(assigned), **compare_splits(images, features)}
