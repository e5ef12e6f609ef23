"""Scores many images in parts of a few dozen. Finished parts are kept, so that a run resumes after a kill.

An image that cannot be read becomes a row with its error. Memory does not grow with the number of images: a part is
limited in files and bytes, a batch in images and pixels.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial as bound
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from pipeline.data.images import UnreadableImageError, decode, image_statistics, stored_size
from pipeline.data.path_metadata import photo_of
from pipeline.data.sources import Content, read_image_file
from pipeline.files import replacing
from pipeline.inference.dask_cluster import compute_on_cluster
from pipeline.inference.openvino_cpu import N_THREADS
from pipeline.inference.served import ServedModel, bounded_batches
from pipeline.models.decision import load_decision
from pipeline.monitoring.prediction_log import IMAGE_STATISTICS, embeddings_of
from pipeline.registry.model_lookup import FoundModel, ModelFiles, model_of
from pipeline.safe_text import as_utf8, cells

PART_IMAGES = 64
MAX_PART_BYTES = 10_000_000  # bounds what a kill loses, and what is sent to a worker at once
LOGGED_IMAGES = 1000  # per file of the prediction log, which slows down with many files
ANSWER = ["probability", "label", "reason"]
COLUMNS = ["path", *ANSWER, "error"]


def score(
    model: ServedModel, contents: Sequence[Content], *, with_statistics: bool = False, prevalence: float | None = None
) -> pd.DataFrame:
    """Return a row for each file: probability (NaN if it cannot be read), label, reason for a review, and error.

    Each thread decodes a batch and then scores it, so that no core waits. `with_statistics` adds the columns of the
    prediction log: image statistics, embedding and the uncorrected probability. Probabilities are corrected for a
    `prevalence`.
    """
    scored: list[pd.DataFrame] = []
    errors = [content if isinstance(content, str) else "" for content in contents]  # "": none
    sizes: dict[int, tuple[int, int]] = {}  # (height, width) by position
    for position, content in enumerate(contents):
        try:
            if isinstance(content, bytes):
                sizes[position] = stored_size(content)
        except UnreadableImageError as error:
            errors[position] = str(error)

    def fill(batch: npt.NDArray[np.int64]) -> None:
        decoded = {}
        for position in batch.tolist():
            try:
                decoded[position] = decode(contents[position])
            except UnreadableImageError as error:
                errors[position] = str(error)
        if decoded:
            outputs = model.outputs(np.stack(list(decoded.values())))
            table = pd.DataFrame(model.labels(outputs, prevalence)._asdict(), index=list(decoded))
            if with_statistics:
                statistics = pd.DataFrame(map(image_statistics, decoded.values()), index=table.index)
                embeddings = list(embeddings_of(outputs["features"]))
                table = table.join(statistics).assign(embedding=embeddings, uncorrected=outputs["probability"])
            scored.append(table)

    readable = np.array(list(sizes), np.int64)
    batches = bounded_batches(np.array(list(sizes.values()), np.int64).reshape(-1, 2))
    with ThreadPoolExecutor(N_THREADS) as pool:
        list(pool.map(fill, [readable[batch] for batch in batches]))  # raises the exception of a batch
    table = pd.concat(scored) if scored else pd.DataFrame()
    columns = [*ANSWER, "uncorrected", *IMAGE_STATISTICS, "embedding"] if with_statistics else ANSWER
    table = table.reindex(index=range(len(contents)), columns=columns)
    table = table.astype({"probability": np.float32, "label": object, "reason": object})
    return table.fillna({"label": "", "reason": ""}).assign(error=errors)


def score_on_worker(files: ModelFiles, contents: Sequence[Content], **settings: Any) -> pd.DataFrame:
    """Return `score` with the model of `files` and these settings; runs on a worker of a cluster."""
    return score(model_of(files), contents, **settings)


def log_rows(table: pd.DataFrame, model_version: str, photo_pattern: str | None, time: datetime) -> pd.DataFrame:
    """Return the rows of the prediction log for the readable images of a table of `score` with statistics and paths.

    The first group of `photo_pattern`, a regular expression, names the photo of a tile; without one, and where it does
    not match, each image is a photo of its own. `time` has a time zone.
    """
    readable = table[table["error"] == ""]
    paths = [str(Path(path).absolute()) for path in readable["path"]]
    return readable[[*IMAGE_STATISTICS, "embedding"]].assign(
        probability=readable["uncorrected"],  # a stated prevalence is no drift
        time=pd.Timestamp(time),
        model_version=model_version,
        source="predict",
        photo=[photo_of(path, photo_pattern) or path for path in paths],
        path=paths,
    )


def unfinished_folder(found: FoundModel, paths: Sequence[Path], out: Path, prevalence: float | None = None) -> Path:
    """Return the folder of unfinished work beside `out`, one for each model, stated prevalence and set of files."""
    digest = hashlib.sha256(f"{found.identity()}{prevalence}".encode())
    for path in paths:
        digest.update(f"{path}\0{_size_and_time(path)}\0".encode(errors="surrogateescape"))
    return out.with_name(f".{out.name}.{digest.hexdigest()[:16]}.unfinished")


def _size_and_time(path: Path) -> tuple[int, int] | None:
    """Return the size of a file in bytes, and when it was changed, in ns; None if that cannot be found out."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _buffered(on_scored: Callable[[pd.DataFrame], None] | None) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that collects tables and passes them on, 1,000 rows or more at a time; the rest at the end."""
    buffer: list[pd.DataFrame] = []

    def flush(at_least: int) -> None:
        if on_scored is not None and sum(map(len, buffer)) >= at_least:
            on_scored(pd.concat(buffer, ignore_index=True))
            buffer.clear()

    def add(table: pd.DataFrame) -> None:
        if on_scored is not None:
            buffer.append(table)
            flush(LOGGED_IMAGES)

    try:
        yield add
    finally:
        flush(1)


def parts_of(paths: Sequence[Path]) -> list[Sequence[Path]]:
    """Return files in parts, in order: at most 64 files and 10 MB each, or one larger file."""
    starts, n_bytes = [0], 0
    for position, path in enumerate(paths):
        size, _ = _size_and_time(path) or (0, 0)
        n_bytes += size
        if position - starts[-1] == PART_IMAGES or (n_bytes > MAX_PART_BYTES and position > starts[-1]):
            starts.append(position)
            n_bytes = size
    return [paths[start:stop] for start, stop in zip(starts, [*starts[1:], len(paths)], strict=True)]


def run(
    found: FoundModel,
    paths: Sequence[Path],
    out: Path,
    dask_address: str | None = None,
    on_scored: Callable[[pd.DataFrame], None] | None = None,
    *,
    prevalence: float | None = None,
) -> dict[str, int]:
    """Score images into the CSV file `out`, in the order of `paths`; return the number of images with each label.

    A row has path, probability, label, reason (why it is for review) and error; unreadable images have the label "".
    `on_scored` is called with the scored rows and their statistics, 1,000 images or more at a time; if the process is
    killed, the last ones are not passed on. With a `prevalence`, a share of cracks above 0 and below 1, probabilities
    are corrected for it, and a row also has assumed_prevalence (what the model assumes) and prevalence.

    Raises CracksError if a prevalence is stated, and it is not recorded which one the model assumes.
    """
    correction = load_decision(found.folder).correction(prevalence)
    unfinished = unfinished_folder(found, paths, out, prevalence)
    parts = {unfinished / f"{number:09}.csv": part for number, part in enumerate(parts_of(paths))}
    missing = [part for part in parts if not part.exists()]
    tasks = ((part, [read_image_file(path) for path in parts[part]]) for part in missing)
    tables: Iterator[tuple[Path, pd.DataFrame]]
    settings: dict[str, Any] = {"with_statistics": on_scored is not None, "prevalence": prevalence}
    if dask_address is None:
        model = found.load()
        tables = ((part, score(model, contents, **settings)) for part, contents in tasks)
    else:
        compute = bound(score_on_worker, **settings)
        tables = compute_on_cluster(dask_address, compute, ModelFiles.read(found), tasks, local_hint="leave --dask out")
    with _buffered(on_scored) as add, tqdm(total=len(paths), desc="scoring", unit=" images", disable=None) as bar:
        bar.update(len(paths) - sum(len(parts[part]) for part in missing))
        for part, table in tables:
            table = table.assign(path=[as_utf8(path) for path in parts[part]], **correction)
            with replacing(part) as partial:
                cells(table[[*COLUMNS, *correction]]).to_csv(partial, index=False)
            add(table)
            bar.update(len(table))
    counts: Counter[str] = Counter()
    with replacing(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        for number, part in enumerate(parts):
            table = pd.read_csv(part, dtype=str, keep_default_na=False)
            counts.update(table["label"])
            table.to_csv(file, index=False, header=number == 0)
    shutil.rmtree(unfinished)
    return dict(counts)
