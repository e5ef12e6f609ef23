"""Decodes uploads: checks their headers first, then decodes in threads, within the pixel budget."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import File, UploadFile

from pipeline.data.images import Pixels, UnreadableImageError, decode, stored_size
from pipeline.inference.openvino_cpu import N_THREADS
from serving.limits import PixelBudget, in_thread
from serving.problems import Problem

MEGA = 1_000_000
Files = Annotated[list[UploadFile], File(description="JPEG, PNG, WebP, TIFF or BMP")]


@dataclass(frozen=True)
class Upload:
    """A file whose header is that of an image of an allowed size."""

    name: str
    content: bytes
    n_pixels: int


class Decoder:
    """Decodes uploads in threads, at most `max_pixels` at once."""

    def __init__(self, max_pixels: int) -> None:
        self._budget = PixelBudget(max_pixels)
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="decoder")

    @asynccontextmanager
    async def decoded(self, upload: Upload) -> AsyncIterator[Pixels]:
        """Yield the pixels of an upload, uint8 (height, width, 3); they count towards the budget inside the block.

        Raises Problem if the file is damaged.
        """
        async with self._budget.reserve(upload.n_pixels):
            try:
                pixels = await in_thread(lambda _: decode(upload.content), self._pool)
            except UnreadableImageError as error:
                raise unreadable_files([f"{upload.name}: {error}"]) from None
            yield pixels

    def close(self) -> None:
        """Wait for running work."""
        self._pool.shutdown()


async def read_uploads(files: list[UploadFile], max_files: int, max_megapixels: int) -> list[Upload]:
    """Return the files of a request. Raises Problem if there are too many, or one is not an image or too large."""
    if len(files) > max_files:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{len(files)} files are more than {max_files}. Split the request."
        )
    uploads, reasons = [], []
    for number, file in enumerate(files, start=1):
        name = PurePosixPath((file.filename or f"file {number}").replace("\\", "/")).name
        content = await file.read()
        try:
            height, width = stored_size(content)
            if height * width > max_megapixels * MEGA:
                raise UnreadableImageError(f"{width} x {height} px is more than {max_megapixels} megapixels")
            uploads.append(Upload(name, content, height * width))
        except UnreadableImageError as error:
            reasons.append(f"{name}: {error}")
    if reasons:
        raise unreadable_files(reasons)
    return uploads


def unreadable_files(reasons: list[str]) -> Problem:
    """Return the problem for files that cannot be read, with a line for each."""
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Some files are not images that can be read, so none was scored. Remove or repair them.",
        errors=reasons,
    )
