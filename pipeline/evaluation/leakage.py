"""The leakage effect: how much better a plain model scores on a random split than on the leak-free one.

Both are scored on the validation side. On the random split, some features are those in the training precision.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from pipeline.data.training_images import TRAINING_SIDES
from pipeline.training.features import features_of

MAX_IMAGES = 20_000  # so that both fits take seconds; complete groups are sampled, so that copies stay as frequent
SEED = 0

Sides = npt.NDArray[np.object_]  # (n,), train or validation


def sample_groups(images: pd.DataFrame) -> pd.DataFrame:
    """Return the images of random groups, at most MAX_IMAGES images."""
    groups = images["group"].drop_duplicates().sample(frac=1, random_state=SEED)
    sizes = images["group"].value_counts().loc[groups]
    return images[images["group"].isin(sizes.index[sizes.cumsum() <= MAX_IMAGES])]


def random_sides(images: pd.DataFrame) -> Sides:
    """Return a random side for each image, regardless of its group; the number of images per side and label is kept."""
    rng = np.random.default_rng(SEED)
    return images.groupby("label")["split"].transform(rng.permutation).to_numpy(object)


def _scores(features: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_], sides: Sides) -> dict[str, float]:
    train, scored = sides == "train", sides == "validation"
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    standardised = (features - mean) / np.where(std > 0, std, 1)
    model = LogisticRegression(max_iter=2000).fit(standardised[train], labels[train])
    predicted = model.predict(standardised[scored])
    wrong = predicted != labels[scored]
    return {
        "n_errors": int(wrong.sum()),
        "errors_per_thousand": 1000 * float(wrong.mean()),
        "f1": float(f1_score(labels[scored], predicted, zero_division=0.0)),
    }


def compare_splits(images: pd.DataFrame, features: npt.NDArray[np.float32]) -> dict[str, float | int]:
    """Return the scores of logistic regression on the leak-free and on a random split, and the leakage of the latter.

    `images` has label, group and split (train, with both labels, or validation), and `features` (n, n_features).
    Leakage is the scored images whose group (copies, tiles of one photo) also occurs in train.
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
    """Return the result of `compare_splits` for the manifest's training and validation images, and their number."""
    assigned = manifest[manifest["split"].isin(TRAINING_SIDES)]
    images = sample_groups(assigned).sort_values(["dataset", "row"])
    features = features_of(images, features_folder).astype(np.float32)  # in half precision, long sums would overflow
    return {"n_available": len(assigned), **compare_splits(images, features)}
