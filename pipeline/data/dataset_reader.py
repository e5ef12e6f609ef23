"""Read a data set: decode, describe and pack its images, and list all other files in the quarantine."""

import hashlib
import logging
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pandas as pd
from tqdm import tqdm

from pipeline.data.archives import Entry
from pipeline.data.demo import draw, read_recipe
from pipeline.data.fingerprints import fingerprint
from pipeline.data.image_names import no_picture_reason, not_read_reason, reasons_with_counts
from pipeline.data.images import (
    IMAGES_FILE,
    INVENTORY_FILE,
    NOT_AN_IMAGE,
    QUARANTINE_FILE,
    UnreadableImageError,
    image_statistics,
    open_image,
    thumbnail,
    to_pixels,
)
from pipeline.data.masks import labelled_entries
from pipeline.data.path_metadata import (
    DEFAULT_LABELS,
    SDNET_FOLDERS,
    check_photo_pattern,
    label_of,
    photo_of,
    slice_of,
)
from pipeline.data.reviews import PROVENANCE, REVIEWS_FILE, Verdict, apply_reviews, read_reviews
from pipeline.data.sources import Batch, batches_of, read_batch
from pipeline.errors import CracksError
from pipeline.files import name_by_hash, replacing_folder
from pipeline.params import CONTENT_ID_LENGTH, Dataset, Limits
from pipeline.safe_text import cells

log = logging.getLogger(__name__)

# Limits of what is in memory at a time.
CHUNK_FILES = 512
CHUNK_BYTES = 64_000_000
QUARANTINE_COLUMNS = ["batch", "path", "reason", "is_image", "is_left_out"]


def describe(file: tuple[str, bytes, int]) -> dict[str, Any]:
    """Return the measured columns of the inventory for (path, content, maximum of pixels), or why it is not used.

    That is {path, reason, is_left_out}; `is_left_out` is true of a file that is not a picture.
    """
    path, content, max_pixels = file
    no_picture, has_suffix = no_picture_reason(path), bool(PurePosixPath(path).suffix)
    if no_picture and has_suffix:
        return {"path": path, "reason": no_picture, "is_left_out": True}
    if reason := not_read_reason(path):
        return {"path": path, "reason": reason, "is_left_out": False}
    try:
        image = open_image(content, max_pixels, remedy="Raise ingest.max_image_megapixels in params.yaml, or divide it")
        pixels = to_pixels(image)
    except UnreadableImageError as error:
        is_left_out = not has_suffix and str(error) == NOT_AN_IMAGE
        return {"path": path, "reason": no_picture if is_left_out else str(error), "is_left_out": is_left_out}
    return {
        "path": path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "mode": image.mode,
        "format": image.format,
        "n_bytes": len(content),
        **image_statistics(pixels),
        "fingerprint": fingerprint(thumbnail(pixels)).tobytes(),
    }


def entries_of(dataset: Dataset, batch: Batch, limits: Limits) -> Iterator[Entry]:
    """Yield every file of a batch of the data set, drawn, labelled by a mask, or as it is."""
    if dataset.is_drawn:
        return (Entry(path, content) for path, content in draw(read_recipe(dataset.source)))
    if dataset.masks:
        max_pixels = limits.max_image_megapixels * 1_000_000
        return labelled_entries(lambda: read_batch(batch, limits), dataset.masks, max_pixels)
    return read_batch(batch, limits)


def check_labels(unlabelled: Iterable[str], dataset: Dataset) -> None:
    """Raise CracksError if there are unlabelled paths; the message lists their folders and the known labels."""
    folders = sorted({str(PurePosixPath(path).parent) for path in unlabelled})
    if folders:
        shown = ", ".join(repr(folder) for folder in folders[:5]) + (" ..." if len(folders) > 5 else "")
        raise CracksError(
            f"{dataset.source} has images in folders without a known label: {shown}. "
            f"Known are {', '.join(dataset.labels or (*DEFAULT_LABELS, *SDNET_FOLDERS))}. Rename the folders, or name "
            "all label folders under `labels` of this data set in params.yaml, such as labels: {Risse: crack, Heil: "
            "intact}; `cracks audit` takes them as --label Risse=crack --label Heil=intact."
        )


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in lists, limited by number of files and bytes."""
    chunk: list[Entry] = []
    n_bytes = 0
    for entry in entries:
        chunk.append(entry)
        n_bytes += len(entry.content or b"")
        if len(chunk) == CHUNK_FILES or n_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, n_bytes = [], 0
    yield chunk


class _Inventory:
    """Rows of the inventory and the quarantine, and the file of packed images, while a data set is read."""

    def __init__(self, dataset: Dataset, packed: BinaryIO) -> None:
        self.images: list[dict[str, Any]] = []
        self.quarantine: list[dict[str, Any]] = []
        self._dataset = dataset
        self._packed = packed

    def add(self, batch: str, entry: Entry, measured: dict[str, Any]) -> None:
        """Pack an image and add its row, or add the file to the quarantine."""
        if entry.content is None or entry.reason or "reason" in measured:
            is_image = entry.content is not None and "reason" not in measured
            is_left_out = entry.is_left_out or measured.get("is_left_out", False)
            reason = entry.reason or measured["reason"]
            self._quarantine(batch, entry.path, reason, is_image=is_image, is_left_out=is_left_out)
            return
        label = label_of(entry.path, self._dataset.labels)
        row = {
            "id": name_by_hash(f"{batch}\0{entry.path}"),
            "batch": batch,
            **measured,
            "label": label,
            "first_label": label,
            "slice": slice_of(entry.path, self._dataset.labels),
            "photo": photo_of(entry.path, self._dataset.photo_pattern),
            "is_review": False,
            **dict.fromkeys(PROVENANCE),
            "offset": self._packed.tell(),
        }
        self._packed.write(entry.content)
        self.images.append(row)

    def apply_verdicts(self, batch: str, verdicts: Mapping[str, Verdict]) -> None:
        """Label the images of a review batch; move those without a verdict to the quarantine."""
        added = [row for row in self.images if row["batch"] == batch]
        self.images = [row for row in self.images if row["batch"] != batch]
        for row in added:
            verdict = verdicts.get(row["sha256"])
            if verdict is None or verdict.disagreement:
                reason = verdict.disagreement if verdict else f"not in {REVIEWS_FILE}"
                self._quarantine(batch, row["path"], reason, is_image=True)
                continue
            review = verdict.review
            provenance = {"reviewer": review.reviewer, "reviewed_at": review.time.isoformat(), "reviewed_in": batch}
            labels = {"label": review.label, "first_label": review.label}
            self.images.append(row | labels | provenance | {"photo": review.photo or row["photo"], "is_review": True})
        for sha256 in sorted(verdicts.keys() - {row["sha256"] for row in added}):
            self._quarantine(batch, verdicts[sha256].review.path, "reviewed, but the image is missing", is_image=True)

    def _quarantine(
        self, batch: str, path: str, reason: str, *, is_image: bool = False, is_left_out: bool = False
    ) -> None:
        self.quarantine.append(dict(zip(QUARANTINE_COLUMNS, (batch, path, reason, is_image, is_left_out), strict=True)))


@contextmanager
def _end_postponed() -> Iterator[None]:
    """Let a request to end (SIGTERM) wait until the block is done; for the main thread, which alone gets signals.

    It is for `ProcessPoolExecutor.map`, which starts processes: those whose parent ends meanwhile print a traceback or
    wait for ever.
    """
    requests: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: requests.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if requests:
            signal.raise_signal(signal.SIGTERM)


def read_dataset(dataset: Dataset, limits: Limits, packed: BinaryIO) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write the bytes of every image to `packed`; return the inventory and the quarantine."""
    inventory = _Inventory(dataset, packed)
    max_pixels = limits.max_image_megapixels * 1_000_000
    with (
        ProcessPoolExecutor(mp_context=multiprocessing.get_context("forkserver")) as pool,
        tqdm(desc=f"reading {dataset.source}", unit=" files", disable=None) as progress,
    ):
        for batch in batches_of(dataset.source):
            seen: set[str] = set()
            verdicts: dict[str, Verdict] | None = None
            for chunk in _chunks(entries_of(dataset, batch, limits)):
                files = [(entry.path, entry.content, max_pixels) for entry in chunk if entry.content is not None]
                try:
                    with _end_postponed():
                        results = pool.map(describe, files, chunksize=32)
                    measured = iter(list(results))
                except BrokenProcessPool:
                    raise CracksError(
                        f"A process that decodes {dataset.source} was killed; the machine may have too little memory. "
                        "Free some, or lower ingest.max_image_megapixels in params.yaml, and run it again."
                    ) from None
                for entry in chunk:
                    row = {} if entry.content is None else next(measured)
                    if entry.path in seen:
                        row["reason"] = "its path occurs twice"
                    seen.add(entry.path)
                    if entry.path == REVIEWS_FILE and entry.content is not None:
                        verdicts = read_reviews(entry.content, str(batch.source))
                    else:
                        inventory.add(batch.name, entry, row)
                progress.update(len(chunk))
            if verdicts is not None:
                inventory.apply_verdicts(batch.name, verdicts)
    check_labels((row["path"] for row in inventory.images if row["label"] is None), dataset)
    quarantine = pd.DataFrame(inventory.quarantine, columns=QUARANTINE_COLUMNS)
    if not inventory.images:
        reasons = reasons_with_counts(quarantine["reason"])
        raise CracksError(
            f"{dataset.source} contains no image that can be read ({len(quarantine)} other files{':' * bool(reasons)}"
            f"{reasons}). Add labelled images in folders such as Positive/ and Negative/."
        )
    # those that a person should look at first: a page shows the first hundred
    return apply_reviews(pd.DataFrame(inventory.images)), quarantine.sort_values("is_left_out", kind="stable")


def with_corrected_labels(inventory: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Return the inventory with the labels that params.yaml corrects; `first_label` stays, so that no image moves.

    Raises CracksError if an image of `corrected_labels` is not there.
    """
    ids = inventory["sha256"].str[:CONTENT_ID_LENGTH]
    if missing := sorted(dataset.corrected_labels.keys() - set(ids)):
        raise CracksError(
            f"{dataset.source} has no image of the id {', '.join(missing)}, which corrected_labels names. Copy the id "
            "from the validation page: the first 16 digits of the sha256 of the file."
        )
    labels = zip(ids, inventory["label"], strict=True)
    return inventory.assign(label=[dataset.corrected_labels.get(name, label) for name, label in labels])


def pack_dataset(dataset: Dataset, limits: Limits, out: Path) -> None:
    """Read the source of `dataset` and write images, inventory and quarantine into `out`, atomically.

    Raises CracksError if the source cannot be read, exceeds a limit, has unlabelled folders or no image, or if its
    `photo_pattern` is no regular expression with a group.
    """
    check_photo_pattern(dataset.photo_pattern)
    with replacing_folder(out) as folder, (folder / IMAGES_FILE).open("wb") as packed:
        inventory, quarantine = read_dataset(dataset, limits, packed)
        inventory = with_corrected_labels(inventory, dataset)
        inventory.to_parquet(folder / INVENTORY_FILE, index=False)
        cells(quarantine).to_csv(folder / QUARANTINE_FILE, index=False)
    reasons = reasons_with_counts(quarantine["reason"])
    log.info("%s: %d images, %d files in quarantine%s", dataset.source, len(inventory), len(quarantine), reasons)
