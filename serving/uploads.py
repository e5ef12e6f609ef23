"""Decodes uploads: checks their headers first, then decodes, both in threads and within the pixel budget."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial as bound
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import File, UploadFile

from pipeline.data.images import Pixels, UnreadableImageError, decode, stored_size
from pipeline.safe_text import printable
from serving.limits import PixelBudget, in_thread
from serving.problems import Problem

MEGA = 1_000_000
SLOW_S = 1.0  # after which a decoder lets another one begin
TOO_LARGE_REMEDY = "Divide it, or have serve.max_image_megapixels or serve.max_photo_megapixels raised"
MAX_SLOW = 4  # slow decoders beside those that the processor has cores for
Files = Annotated[list[UploadFile], File(description="JPEG, PNG, WebP, TIFF or BMP")]


@dataclass(frozen=True)
class Upload:
    """A file whose header is that of an image of an allowed size."""

    name: str
    content: bytes
    n_pixels: int


class Decoder:
    """Decodes uploads of at most `max_megapixels` each and `max_decoded_megapixels` at once."""

    def __init__(
        self,
        max_megapixels: int,
        max_decoded_megapixels: int,
        max_requests: int,
        n_threads: int,
        on_slow: Callable[[], object],
    ) -> None:
        """Set the limits, how many images to decode at once, and what to call when one takes more than SLOW_S."""
        self._max_pixels = max_megapixels * MEGA
        self._on_slow = on_slow
        self._budget = PixelBudget(max_decoded_megapixels * MEGA)
        # A thread for each request: one with slow headers delays no other.
        self._headers = ThreadPoolExecutor(max_requests, thread_name_prefix="headers")
        self._pool = ThreadPoolExecutor(n_threads + MAX_SLOW, thread_name_prefix="decoder")
        self._turns = asyncio.Semaphore(n_threads)

    async def read(self, files: list[UploadFile], max_files: int) -> list[Upload]:
        """Return the files of a request. Raises Problem if there are too many, or one is no image or too large."""
        if len(files) > max_files:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{len(files)} files are more than {max_files}. Split the request."
            )
        named = [(_name_of(file, number), await file.read()) for number, file in enumerate(files, start=1)]
        found = await in_thread(lambda _: [self._checked(name, content) for name, content in named], self._headers)
        if reasons := [reason for reason in found if isinstance(reason, str)]:
            raise unreadable_files(reasons)
        return [upload for upload in found if isinstance(upload, Upload)]

    def _checked(self, name: str, content: bytes) -> Upload | str:
        """Return an upload, or why it is refused by its header."""
        try:
            height, width = stored_size(content, self._max_pixels, remedy=TOO_LARGE_REMEDY)
        except UnreadableImageError as error:
            return f"{name}: {error}"
        return Upload(name, content, height * width)

    @asynccontextmanager
    async def decoded(self, upload: Upload, rank: int = 0) -> AsyncIterator[Pixels]:
        """Yield the pixels of an upload, uint8 (height, width, 3); they count towards the budget inside the block.

        Among those that wait, the lowest `rank` is next. A request can end before the decoder, which nothing
        interrupts; the pixels count until that has ended too. Raises Problem if the file is damaged.
        """
        await self._budget.acquire(upload.n_pixels, rank)
        decoding: Future[Pixels] | None = None
        try:
            async with self._turns:
                decoding = self._pool.submit(decode, upload.content)
                answer = asyncio.wrap_future(decoding)
                if not (await asyncio.wait([answer], timeout=SLOW_S))[0]:
                    self._on_slow()
            yield await answer
        except UnreadableImageError as error:
            raise unreadable_files([f"{upload.name}: {error}"]) from None
        finally:
            release = bound(self._budget.release, upload.n_pixels)
            if decoding is None or decoding.cancel() or decoding.done():
                release()
            else:
                loop = asyncio.get_running_loop()
                decoding.add_done_callback(lambda _: loop.call_soon_threadsafe(release))

    def close(self) -> None:
        """Wait for running work."""
        self._headers.shutdown()
        self._pool.shutdown()


def _name_of(file: UploadFile, number: int) -> str:
    return printable(PurePosixPath((file.filename or f"file {number}").replace("\\", "/")).name)


def unreadable_files(reasons: list[str]) -> Problem:
    """Return the problem for files that cannot be read, with a line for each."""
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Some files are not images that can be read, so none was scored. Remove or repair them.",
        errors=reasons,
    )
