"""From which images a model has learned. The list travels with it, so that no later test counts them as unseen."""

import pandas as pd

from pipeline.path_metadata import qualified_photos

LEARNED_FROM_FILE = "learned_from.parquet"
LEARNING_SIDES = ("train", "validation")


def learned_from(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the images that a model trained on this manifest learns from, columns sha256 and photo (or missing)."""
    rows = manifest[manifest["split"].isin(LEARNING_SIDES)]
    return pd.DataFrame({"sha256": rows["sha256"], "photo": qualified_photos(rows)}).reset_index(drop=True)


def learned_groups(manifest: pd.DataFrame, learned: pd.DataFrame) -> frozenset[str]:
    """Return today's groups with an image from which a model has learned, or of a photo that it has seen.

    Args:
        manifest: today's, with columns dataset, photo, sha256 and group.
        learned: of `learned_from`, when the model was registered.
    """
    is_learned = manifest["sha256"].isin(learned["sha256"]) | qualified_photos(manifest).isin(learned["photo"].dropna())
    return frozenset(manifest.loc[is_learned, "group"])
