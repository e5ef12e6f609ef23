"""Groups of images that belong together, and the side of the split that each group is on.

Images are taken batch by batch, oldest first. What an earlier batch decided stands: a newcomer joins the side of the
group that it is linked with, and one that links two sides is excluded. So adding a batch never moves an image.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.near_duplicates import connected_groups
from pipeline.data.path_metadata import qualified_photos
from pipeline.errors import CracksError
from pipeline.params import Fractions, Split

SIDES = ("train", "validation", "test")
EXCLUDED = "excluded"
MANIFEST_COLUMNS = ["path", "dataset", "row", "batch", "label", "slice", "photo", "sha256"]

Pairs = npt.NDArray[np.int64]  # (n_pairs, 2), positions of images that belong together


@dataclass(frozen=True)
class SplitSettings:
    """How new groups are assigned: shares of the images for each side, and what a person decided beforehand."""

    fractions: Fractions
    seed: int
    photo_sides: Mapping[str, str]  # DATASET/PHOTO -> side


def build_manifest(images: pd.DataFrame, pairs: pd.DataFrame, params: Split) -> pd.DataFrame:
    """Return the manifest: the images with their group and split.

    Args:
        images: the inventories one below the other, with the column dataset, in the order of their age.
        pairs: copies among them, columns first and second (positions).
        params: who is trained on, shares, seed, and photos that are given to a side.
    """
    external = ~images["dataset"].isin(params.train_on)
    photo = qualified_photos(images)
    lent = photo.map(params.photo_sides).where(external).dropna()
    assigned = assign_sides(
        pd.DataFrame(
            {
                "batch": arrival_order(images, params.train_on),
                "sha256": images["sha256"],
                # by the label that it came with: a review that corrects it must not assign its neighbours anew
                "stratum": images["dataset"] + "/" + images["slice"] + "/" + images["first_label"],
                "photo": photo,
                "fixed_side": fixed_sides(images, params.train_on),
            }
        ),
        links_between(images, pairs),
        SplitSettings(params.fractions, params.seed, params.photo_sides),
    )
    manifest = images[MANIFEST_COLUMNS].assign(group=assigned["group"], split=assigned["side"])
    manifest.loc[lent.index, "split"] = lent
    manifest.loc[images["disputed"].notna(), "split"] = EXCLUDED  # assigned as before, so that no other image moves
    return manifest


def arrival_order(images: pd.DataFrame, train_on: tuple[str, ...]) -> pd.Series:
    """Return when each image came, 0 the oldest: external test sets, then the first batch of each data set, and on."""
    order = images.groupby("dataset")["batch"].transform(lambda batches: pd.factorize(batches)[0])
    return (order + 1).where(images["dataset"].isin(train_on), 0).astype(int)


def links_between(images: pd.DataFrame, pairs: pd.DataFrame) -> Pairs:
    """Return the pairs of positions that belong together: copies, and neighbours among the tiles of a photo."""
    photos = qualified_photos(images).dropna()
    following = photos.index.to_series().groupby(photos).shift(-1).dropna()
    tiles = np.stack([following.index.to_numpy(), following.to_numpy()], axis=1).astype(np.int64)
    return np.concatenate([pairs[["first", "second"]].to_numpy(np.int64), tiles])


def fixed_sides(images: pd.DataFrame, train_on: tuple[str, ...]) -> pd.Series:
    """Return the side of images that are not assigned, None of others: what is not trained on, and reviews.

    Reviews are of images that a model was unsure of or that someone doubted: no sample that one could test on.
    """
    sides = pd.Series(None, index=images.index, dtype=object)
    sides[images["is_review"].astype(bool)] = "train"
    sides[~images["dataset"].isin(train_on)] = "external"
    return sides


def assign_sides(images: pd.DataFrame, links: Pairs, settings: SplitSettings) -> pd.DataFrame:
    """Return for each image its `group`, named by the smallest sha256 that founded it, and its `side`.

    Args:
        images: oldest first, positions 0..n-1 as index; columns batch (int, ascending), sha256, stratum (groups are
            assigned in each alone), photo (DATASET/PHOTO, or None), fixed_side (of images that are not assigned, or
            None).
        links: pairs of positions that belong together.
        settings: shares, seed and sides that are given.

    Raises:
        CracksError: photos that are linked were given to different sides.
    """
    result = pd.DataFrame({"group": None, "side": None}, index=images.index, dtype=object)
    for batch, newcomers in images.groupby("batch"):
        so_far = np.flatnonzero(images["batch"] <= batch)
        # An excluded image passes nothing on: else one that links two sides would make one group of them for ever.
        excluded = np.flatnonzero(result["side"] == EXCLUDED)
        conducting = links[~(np.isin(links, excluded).any(axis=1) & (links < newcomers.index[0]).all(axis=1))]
        parts = _linked_parts(so_far, conducting)
        old, new = parts[parts.index < newcomers.index[0]], parts[newcomers.index]
        joining = _sides_of_known_parts(result.loc[old.index], old)
        founding = _assign_new_parts(newcomers[~new.isin(joining.index)], new, settings)
        decided = pd.concat([joining, founding]).loc[new].set_axis(new.index)
        decided["side"] = decided["side"].where(_may_take(decided["side"], _given(newcomers, settings)), EXCLUDED)
        result.loc[new.index] = decided
    return result


def _given(images: pd.DataFrame, settings: SplitSettings) -> "pd.Series[str]":
    """Return the side that each image, or its photo, was given beforehand; None or NaN where it is free."""
    return images["fixed_side"].astype(object).fillna(_side_of_photo(images, settings))


def _side_of_photo(images: pd.DataFrame, settings: SplitSettings) -> "pd.Series[str]":
    return images["photo"].astype(object).map(settings.photo_sides)


def _may_take(side: "pd.Series[str]", given: "pd.Series[str]") -> "pd.Series[bool]":
    """Return which images may be on the side of their part: a given one on its own alone, others not on external."""
    return (given == side) | (given.isna() & (side != "external"))


def _linked_parts(positions: npt.NDArray[np.int64], links: Pairs) -> "pd.Series[int]":
    """Return for each position the smallest one that it is linked with, directly or by others of these positions."""
    inside = links[np.isin(links, positions).all(axis=1)]
    parts = connected_groups(len(positions), np.searchsorted(positions, inside))
    return pd.Series(positions[parts], index=positions)


def _sides_of_known_parts(known: pd.DataFrame, parts: "pd.Series[int]") -> pd.DataFrame:
    """Return group and side for each part that has known members: the smallest name; excluded where sides differ."""
    by_part = known.groupby(parts)
    joined = by_part.min()
    joined.loc[by_part["side"].nunique() > 1, "side"] = EXCLUDED
    return joined


def _assign_new_parts(images: pd.DataFrame, parts: "pd.Series[int]", settings: SplitSettings) -> pd.DataFrame:
    """Return group and side for each part of which no member was known."""
    by_part = images.groupby(parts[images.index])
    founded = pd.DataFrame({"group": by_part["sha256"].min(), "stratum": by_part["stratum"].min(), "n": by_part.size()})
    founded["side"] = None
    for _, stratum in founded.groupby("stratum"):
        founded.loc[stratum.index, "side"] = _assign_stratum(stratum, settings)
    # a person's word on a photo goes before the side that an image is fixed to, and nothing before "external"
    of_photo = _side_of_photo(images, settings)
    for part, members in images[of_photo.notna() | images["fixed_side"].notna()].groupby(parts[images.index]):
        fixed, named = members["fixed_side"].dropna(), of_photo[members.index].dropna()
        is_external = (fixed == "external").any()
        founded.loc[part, "side"] = "external" if is_external else _one_side(members, named if len(named) else fixed)
    return founded[["group", "side"]]


def _assign_stratum(groups: pd.DataFrame, settings: SplitSettings) -> list[str]:
    """Return a side for each group: systematic sampling in the order of a hash, from a start that is a hash too.

    So each side gets its share as nearly as the sizes of the groups allow, and a group that is alone in its batch is
    assigned like any other.
    """
    hashes = np.array([_uniform(f"{settings.seed}:{name}") for name in groups["group"]])
    order = np.argsort(hashes)
    sizes = groups["n"].to_numpy()[order]
    middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()  # 0..1
    start = _uniform(f"{settings.seed}:start:{groups['group'].min()}")
    places = np.empty(len(groups))
    places[order] = (start + middles) % 1
    borders = np.cumsum([settings.fractions.train, settings.fractions.validation])
    return [SIDES[index] for index in np.searchsorted(borders, places, side="right")]


def _one_side(images: pd.DataFrame, sides: "pd.Series[str]") -> str:
    if sides.nunique() > 1:
        photos = ", ".join(sorted(images.loc[sides.index, "photo"].dropna().unique()))
        raise CracksError(
            f"Photos that hold copies of each other are given to different sides: {photos}. Give them to one side."
        )
    return str(sides.iloc[0])


def _uniform(text: str) -> float:
    """Return a number in 0..1 that a hash of `text` decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
