"""Choose the images in the prediction log that are most worth labelling."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import CracksError
from pipeline.files import replacing_folder
from pipeline.monitoring.monitored_model import MonitoredModel, monitored_model
from pipeline.monitoring.prediction_log import Embeddings, PredictionLog
from pipeline.params import Params
from pipeline.project import LOG_FOLDER
from pipeline.safe_text import cells

COLUMNS = ["path", "photo", "time", "probability", "distance", "worth", "reason"]  # distance of embeddings, worth 0..1
MAX_NAME = 80  # last characters of a file's name that a copy has


def most_worth_labelling(log: pd.DataFrame, reference: pd.DataFrame, n: int, threshold: float) -> pd.DataFrame:
    """Return the n images most worth labelling: the model is unsure of them, or they are far from the training images.

    Both criteria are percentile ranks within the log: by uncertainty (uncertainty sampling, Lewis and Gale 1994) and by
    distance to the nearest training image (as in core sets, Sener and Savarese 2018). The larger rank is the worth of
    an image. Tiles of one photo are similar, so the best tile of every photo comes before the second tile of any.

    `log` has the rows of the prediction log of one model; `reference` and decision `threshold` (0..1) are that model's.
    The result has the columns `COLUMNS`, in the order in which to label. A file that was scored twice occurs once.
    """
    newest = log.sort_values("time")
    newest = newest[newest["path"].isna() | ~newest.duplicated(["photo", "path"], keep="last")]
    if newest.empty:
        return pd.DataFrame(columns=COLUMNS)
    distance = distances(np.stack(list(newest["embedding"])), np.stack(list(reference["embedding"])))
    is_unsure = (newest["probability"].astype(np.float64) - threshold).abs().rank(ascending=False, pct=True)
    is_far = pd.Series(distance, newest.index).rank(pct=True)
    reason = np.where(is_unsure >= is_far, "unsure", "far from training")
    rated = newest.assign(distance=distance, worth=np.maximum(is_unsure, is_far), reason=reason)
    rated = rated.sort_values(["worth", "photo", "path"], ascending=[False, True, True])
    rank_in_photo = rated.groupby("photo").cumcount()
    return rated.iloc[np.argsort(rank_in_photo.to_numpy(), kind="stable")][COLUMNS].head(n).reset_index(drop=True)


def distances(embeddings: Embeddings, known: Embeddings) -> npt.NDArray[np.float64]:
    """Return the distance of each embedding, (n, 32), to the nearest one in `known`, (m, 32): shape (n,)."""
    from sklearn.neighbors import NearestNeighbors

    nearest, _ = NearestNeighbors(n_neighbors=1).fit(known).kneighbors(embeddings)
    return np.asarray(nearest[:, 0], np.float64)


def export(chosen: pd.DataFrame, folder: Path, contents: Iterable[bytes | None] | None = None) -> int:
    """Write list.csv and copies of the images that still exist into a new `folder`; return the number of copies.

    list.csv has the columns of `chosen`, of which `path` is one, and `file`, the name of the copy, empty if there is
    none. `contents` are the bytes of each image; without them, `path` is that of its file.
    """
    with replacing_folder(folder) as partial:
        files = []
        stored = map(_stored, chosen["path"]) if contents is None else contents
        for place, (path, content) in enumerate(zip(chosen["path"], stored, strict=True)):
            files.append(f"{place:04}-{Path(path).name[-MAX_NAME:]}" if content is not None else "")
            if content is not None:
                (partial / files[-1]).write_bytes(content)
        cells(chosen.assign(file=files)).to_csv(partial / "list.csv", index=False)
    return sum(map(bool, files))


def export_most_worth_labelling(rows: pd.DataFrame, monitored: MonitoredModel, n: int, folder: Path) -> str:
    """Export the n images of `rows` most worth labelling into `folder`; return a message for the user."""
    chosen = most_worth_labelling(rows, monitored.reference, n, monitored.threshold)
    n_copied = export(chosen, folder)
    return (
        f"The {len(chosen):,} images most worth labelling, of {len(rows):,}, are listed in {folder / 'list.csv'}; "
        f"{n_copied:,} of them are copied there. Label them, and put them into data/inbox/ as a batch."
    )


def export_from_log(params: Params, root: Path, folder: Path) -> str:
    """Call `export_most_worth_labelling` on all rows of the prediction log that the monitored model scored.

    Raises CracksError if the log has no rows of that model, no model is registered, or its reference is missing.
    """
    monitored = monitored_model(params.register_as.name)
    rows = PredictionLog(root / LOG_FOLDER).read(model_version=monitored.version)
    if rows.empty:
        raise CracksError(
            f"The prediction log {root / LOG_FOLDER} has no rows of version {monitored.version}. Score images first: "
            "`cracks predict PATH --log`."
        )
    return export_most_worth_labelling(rows, monitored, params.monitor.n_to_label, folder)


def _stored(path: str | float | None) -> bytes | None:
    # images scored through the API have no path
    return Path(path).read_bytes() if isinstance(path, str) and Path(path).is_file() else None
