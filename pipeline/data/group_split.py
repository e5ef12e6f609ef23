"""Assign groups of images to the sides of the split.

Batches are processed oldest first, and an assignment is never changed by a later batch: a new image joins the side of
the group that it is linked to, and is excluded if it links two sides. Adding a batch therefore never moves an image.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.near_duplicates import connected_groups
from pipeline.data.path_metadata import qualified_photos
from pipeline.errors import CracksError
from pipeline.params import Split

SIDES = ("train", "validation", "test")
EXCLUDED = "excluded"
MANIFEST_COLUMNS = ["path", "dataset", "row", "batch", "label", "slice", "photo", "sha256"]

Pairs = npt.NDArray[np.int64]  # (n_pairs, 2), positions of images that belong together


def build_manifest(images: pd.DataFrame, pairs: pd.DataFrame, params: Split) -> pd.DataFrame:
    """Return the manifest: the images with their group and split.

    `images` are the concatenated inventories with the column dataset, in order of arrival; `pairs` are the
    near-duplicates among them, columns first and second (positions).
    """
    external = ~images["dataset"].isin(params.train_on)
    photo = qualified_photos(images)
    held_out = photo.map(params.photo_sides).where(external).dropna()  # for validation
    arrived = images[["sha256"]].assign(
        batch=arrival_order(images, params.train_on),
        # by the first label: a review that corrects a label must not reassign other images
        stratum=images["dataset"] + "/" + images["slice"] + "/" + images["first_label"],
        photo=photo,
        fixed_side=fixed_sides(images, params.train_on),
    )
    sides = assign_sides(arrived, links_between(images, pairs), params)
    manifest = images[MANIFEST_COLUMNS].assign(group=sides["group"], split=sides["side"])
    manifest.loc[held_out.index, "split"] = held_out
    manifest.loc[images["disputed"].notna(), "split"] = EXCLUDED  # only now, so that no other image moves
    return manifest


def arrival_order(images: pd.DataFrame, train_on: tuple[str, ...]) -> pd.Series:
    """Return when each image arrived: 0 for external test sets, k for the k-th batch of a data set trained on."""
    order = images.groupby("dataset")["batch"].transform(lambda batches: pd.factorize(batches)[0])
    return (order + 1).where(images["dataset"].isin(train_on), 0).astype(int)


def links_between(images: pd.DataFrame, pairs: pd.DataFrame) -> Pairs:
    """Return the pairs of positions that belong together: near-duplicates, and consecutive tiles of a photo."""
    photos = qualified_photos(images).dropna()
    following = photos.index.to_series().groupby(photos).shift(-1).dropna()
    tiles = np.stack([following.index.to_numpy(), following.to_numpy()], axis=1).astype(np.int64)
    return np.concatenate([pairs[["first", "second"]].to_numpy(np.int64), tiles])


def fixed_sides(images: pd.DataFrame, train_on: tuple[str, ...]) -> pd.Series:
    """Return "external" for images of external test sets, "train" for reviewed images, None for all others.

    Reviewed images, which a model was unsure of or someone doubted, are no representative sample to test on.
    """
    sides = pd.Series(None, index=images.index, dtype=object)
    sides[images["is_review"].astype(bool)] = "train"
    sides[~images["dataset"].isin(train_on)] = "external"
    return sides


def assign_sides(images: pd.DataFrame, links: Pairs, params: Split) -> pd.DataFrame:
    """Return the `group` of each image, named by the smallest sha256 of its first members, and its `side`.

    `images` are oldest first, with positions 0..n-1 as index and the columns batch (int, ascending), sha256, stratum
    (the shares hold within each), photo (DATASET/PHOTO, or None) and fixed_side (or None). Raises CracksError if linked
    photos are assigned to different sides manually.
    """
    images = images.assign(manual_side=images["photo"].astype(object).map(params.photo_sides))
    result = pd.DataFrame({"group": None, "side": None}, index=images.index, dtype=object)
    for _, new_images in images.groupby("batch"):
        n_old, n_so_far = new_images.index[0], new_images.index[-1] + 1
        # An excluded image no longer links older ones: otherwise one that links two sides would merge their groups.
        excluded = np.flatnonzero(result["side"] == EXCLUDED)
        is_cut = np.isin(links, excluded).any(axis=1) & (links < n_old).all(axis=1)
        used_links = links[(links < n_so_far).all(axis=1) & ~is_cut]
        components = pd.Series(connected_groups(n_so_far, used_links))
        old, new = components[components.index < n_old], components[new_images.index]
        existing = _existing_groups(result.loc[old.index], old)
        created = _create_groups(new_images[~new.isin(existing.index)], new, params)
        assigned = pd.concat([existing, created]).loc[new].set_axis(new.index)
        side = assigned["side"]
        required = new_images["fixed_side"].astype(object).fillna(new_images["manual_side"])
        assigned["side"] = side.where((required == side) | (required.isna() & (side != "external")), EXCLUDED)
        result.loc[new.index] = assigned
    return result


def _existing_groups(assigned: pd.DataFrame, components: "pd.Series[int]") -> pd.DataFrame:
    """Return group (the smallest name) and side of each component of assigned images; excluded if sides differ."""
    by_component = assigned.groupby(components)
    joined = by_component.min()
    joined.loc[by_component["side"].nunique() > 1, "side"] = EXCLUDED
    return joined


def _create_groups(images: pd.DataFrame, components: "pd.Series[int]", params: Split) -> pd.DataFrame:
    """Return group and side of each component that has only new images."""
    by_component = images.groupby(components[images.index])
    created = pd.DataFrame(
        {"group": by_component["sha256"].min(), "stratum": by_component["stratum"].min(), "n": by_component.size()}
    )
    created["side"] = None
    for _, stratum in created.groupby("stratum"):
        created.loc[stratum.index, "side"] = _assign_stratum(stratum, params)
    # "external" has precedence over a manual assignment, which has precedence over the "train" of a review
    constrained = images[images["manual_side"].notna() | images["fixed_side"].notna()]
    for component, members in constrained.groupby(components[images.index]):
        fixed, manual = members["fixed_side"].dropna(), members["manual_side"].dropna()
        is_external = (fixed == "external").any()
        side = "external" if is_external else _common_side(members, manual if len(manual) else fixed)
        created.loc[component, "side"] = side
    return created[["group", "side"]]


def _assign_stratum(groups: pd.DataFrame, params: Split) -> list[str]:
    """Return a side for each group by systematic sampling in the order of a hash.

    Each side gets its share as nearly as the sizes of the groups allow. As the start is a hash too, this holds on
    average also for batches of one group.
    """
    hashes = np.array([_hash_fraction(f"{params.seed}:{name}") for name in groups["group"]])
    order = np.argsort(hashes)
    sizes = groups["n"].to_numpy()[order]
    middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum()  # 0..1
    start = _hash_fraction(f"{params.seed}:start:{groups['group'].min()}")
    places = np.empty(len(groups))
    places[order] = (start + middles) % 1
    borders = np.cumsum([params.fractions.train, params.fractions.validation])
    return [SIDES[index] for index in np.searchsorted(borders, places, side="right")]


def _common_side(images: pd.DataFrame, sides: "pd.Series[str]") -> str:
    if sides.nunique() > 1:
        photos = ", ".join(sorted(images.loc[sides.index, "photo"].dropna().unique()))
        raise CracksError(
            f"These photos contain near-duplicates of each other and are assigned to different sides: {photos}. "
            "Assign them to one side in split.photos of params.yaml."
        )
    return str(sides.iloc[0])


def _hash_fraction(text: str) -> float:
    """Return a number in 0..1 from a hash of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
