"""What leaking is worth: the same plain model, scored on the leak-free split and on a random one."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

MAX_IMAGES = 20_000  # keeps both fits at seconds; whole groups are drawn, so that copies stay as frequent
SEED = 0

Sides = npt.NDArray[np.object_]  # (n,), train, validation or test


def drawn_groups(images: pd.DataFrame) -> pd.DataFrame:
    """Return the images of random groups, about MAX_IMAGES of them, or all where there are not so many."""
    groups = images["group"].drop_duplicates().sample(frac=1, random_state=SEED)
    sizes = images["group"].value_counts().loc[groups]
    return images[images["group"].isin(sizes.index[sizes.cumsum() <= MAX_IMAGES])]


def random_sides(images: pd.DataFrame) -> Sides:
    """Return a random side of each image by itself, as many of each label on each side as there were."""
    rng = np.random.default_rng(SEED)
    return images.groupby("label")["split"].transform(rng.permutation).to_numpy(object)


def _test_score(features: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_], sides: Sides) -> dict[str, float]:
    train, test = sides == "train", sides == "test"
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    standardised = (features - mean) / np.where(std > 0, std, 1)
    model = LogisticRegression(max_iter=2000).fit(standardised[train], labels[train])
    called = model.predict(standardised[test])
    wrong = called != labels[test]
    return {
        "n_errors": int(wrong.sum()),
        "errors_per_thousand": 1000 * float(wrong.mean()),
        "f1": float(f1_score(labels[test], called, zero_division=0.0)),
    }


def compare(images: pd.DataFrame, features: npt.NDArray[np.float32]) -> dict[str, float | int]:
    """Return the test scores of logistic regression on both splits, and how far the random one leaks.

    The random one deals the same images, each by itself, to sides of the same sizes.

    Args:
        images: a row an image: label, group, split (train, validation or test; both labels on train).
        features: of the same images, float32, (n, n_features).

    Returns:
        n_images, n_test; of both splits (`leak_free_…`, `random_…`) n_errors, errors_per_thousand and f1 on test; of
        the random one n_test_with_copy_in_train and share_of_test_with_copy_in_train: test images of whose group
        (copies, tiles of one photo) another image is in train.
    """
    labels, leak_free = (images["label"] == "crack").to_numpy(), images["split"].to_numpy()
    random = random_sides(images)
    groups = images["group"].to_numpy()
    leaked = np.isin(groups[random == "test"], groups[random == "train"])
    scores = {"leak_free": _test_score(features, labels, leak_free), "random": _test_score(features, labels, random)}
    return {
        "n_images": len(images),
        "n_test": len(leaked),
        **{f"{split}_{name}": value for split, values in scores.items() for name, value in values.items()},
        "n_test_with_copy_in_train": int(leaked.sum()),
        "share_of_test_with_copy_in_train": float(leaked.mean()),
    }


def leaking(manifest: pd.DataFrame, features_folder: Path) -> dict[str, float | int]:
    """Return `compare` of the images that were dealt to train, validation and test.

    Args:
        manifest: of `split`, the rows of the data sets trained on; excluded images are left out here.
        features_folder: of one backbone, NAME.npy for each data set, float16 or float32.
    """
    dealt = manifest[manifest["split"].isin(("train", "validation", "test"))]
    images = drawn_groups(dealt).sort_values(["dataset", "row"])
    features = [
        np.load(features_folder / f"{name}.npy", mmap_mode="r")[rows["row"].to_numpy()]
        for name, rows in images.groupby("dataset")
    ]
    # sums over many rows overflow where features are kept in half precision
    return {"n_available": len(dealt), **compare(images, np.concatenate(features).astype(np.float32))}
