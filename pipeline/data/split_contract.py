"""The contract of the split: the rules that every manifest must meet."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.data.group_split import EXCLUDED, SIDES
from pipeline.data.path_metadata import qualified_photos
from pipeline.errors import CracksError

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

MAX_SHARE_OF_A_GROUP = 0.5  # of a label or a slice; with a larger group, the sides cannot be compared


def with_checks(manifest: pd.DataFrame, pairs: pd.DataFrame, train_on: tuple[str, ...]) -> pd.DataFrame:
    """Return the manifest with the columns that the rules of the split refer to, each 0 or 1.

    They are computed from the finished manifest and the near-duplicates, independently of how sides were assigned.
    """
    split, used = manifest["split"], manifest["split"] != EXCLUDED
    first, second = pairs["first"].to_numpy(), pairs["second"].to_numpy()

    def in_pairs(of: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> pd.Series:
        return pd.Series(manifest.index.isin(np.concatenate([first[of], second[of]])), manifest.index).astype(int)

    def on_two_sides(key: pd.Series) -> pd.Series:
        return split[used].groupby(key[used]).transform("nunique").reindex(manifest.index, fill_value=1) > 1

    both_used = used.to_numpy()[first] & used.to_numpy()[second]
    side, dataset, label = (manifest[column].to_numpy() for column in ("split", "dataset", "label"))
    external = ~manifest["dataset"].isin(train_on).to_numpy()
    leaking = in_pairs(both_used & (side[first] != side[second]))
    return manifest.assign(
        is_leak=(on_two_sides(manifest["group"]) | on_two_sides(qualified_photos(manifest))).astype(int) | leaking,
        is_duplicate_across_sides=on_two_sides(manifest["sha256"]).astype(int),
        is_shared=in_pairs(external[first] != external[second]),
        is_conflict=in_pairs((label[first] != label[second]) & (dataset[first] != dataset[second])),
    )


def split_rules() -> list["Expectation"]:
    """Return the rules for all data sets together, over the columns of the manifest and `with_checks`."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="is_leak", value_set=[0], notes="no group, and no photo, is on two sides of the split"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_duplicate_across_sides", value_set=[0], notes="no two images of the same bytes are on two sides"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_shared", value_set=[0], notes="no external image has a copy in a data set trained on"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_conflict", value_set=[0], notes="no image has a copy with the other label in another data set"
        ),
        gxe.ExpectColumnValuesToNotBeInSet(
            column="split",
            value_set=[EXCLUDED],
            mostly=0.99,
            severity=FailureSeverity.WARNING,
            notes="at most 1.0 % of the images are excluded",
        ),
    ]


def check_sides(manifest: pd.DataFrame) -> None:
    """Raise CracksError unless both labels are on every side and no group holds most of a label or a slice."""
    assigned = manifest[manifest["split"].isin(SIDES)]
    for side in SIDES:
        labels = set(assigned.loc[assigned["split"] == side, "label"])
        if labels != {"crack", "intact"}:
            raise CracksError(
                f"The {side} side has {sorted(labels) or 'no images'}, but it needs both crack and intact. "
                "There are too few groups. Add images, change split.fractions or split.seed in params.yaml, or correct "
                "a photo_pattern that gives all images the same photo."
            )
    for column in ("label", "slice"):
        for value, rows in assigned.groupby(column):
            sizes = rows["group"].value_counts()
            if sizes.iloc[0] > max(1, MAX_SHARE_OF_A_GROUP * len(rows)):
                example = rows.loc[rows["group"] == sizes.index[0], "path"].iloc[0]
                raise CracksError(
                    f"One group holds {sizes.iloc[0]} of the {len(rows)} images of {column} {value!r}, for example "
                    f"{example}. Either they are near-duplicates, or photo_pattern gives many photos the same name: "
                    "correct it."
                )


def summarise(manifest: pd.DataFrame, train_on: tuple[str, ...]) -> dict[str, int]:
    """Return counts of the data sets trained on (n_copies: images less groups), and of all leaks."""
    trained = manifest[manifest["dataset"].isin(train_on)]
    n_groups = trained["group"].nunique()
    return {
        "n_images": len(trained),
        "n_groups": n_groups,
        "n_copies": len(trained) - n_groups,
        "n_excluded": int((trained["split"] == EXCLUDED).sum()),
        "leaks": int(manifest["is_leak"].sum() + manifest["is_duplicate_across_sides"].sum()),
    }
