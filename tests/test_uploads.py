"""Decoding uploads beside an event loop, without a server."""

import asyncio
import io
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi import UploadFile
from PIL import Image

from pipeline.inference.openvino_cpu import N_THREADS
from serving import uploads
from serving.problems import Problem
from serving.uploads import MAX_SLOW, MEGA, Decoder, Upload


def decoder_of(**changed):
    limits = {
        "max_megapixels": 100,
        "max_decoded_megapixels": 100,
        "max_requests": 4,
        "n_threads": N_THREADS,
        "on_slow": lambda: None,
    }
    return Decoder(**(limits | changed))


def file_of(content, name="a.png"):
    return UploadFile(io.BytesIO(content), filename=name)


def test_headers_are_checked_beside_the_event_loop_and_before_anything_is_decoded(encode, monkeypatch):
    bomb = encode(Image.new("L", (9400, 9400)), "PNG")
    decoded = []
    monkeypatch.setattr(uploads, "decode", decoded.append)

    async def main():
        longest_s, asking = (
            0.0,
            asyncio.create_task(decoder_of(max_megapixels=4).read([file_of(bomb) for _ in range(3)], 64)),
        )
        while not asking.done():
            started_s = time.perf_counter()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - started_s)
        with pytest.raises(Problem) as problem:
            await asking
        return longest_s, problem.value.errors

    longest_s, errors = asyncio.run(main())
    assert [error.split(". Divide")[0] for error in errors] == ["a.png: 9400 x 9400 px is more than 4 megapixels"] * 3
    assert decoded == []
    assert longest_s < 0.3


def test_a_name_that_hides_its_direction_is_shown_in_full(encode):
    content = encode(np.zeros((4, 4, 3), np.uint8), "PNG")
    [upload] = asyncio.run(decoder_of().read([file_of(content, "x/a\u202egnp.exe")], 1))
    assert upload.name == r"a\u202egnp.exe"


@pytest.fixture
def stuck(monkeypatch):
    """Let decoding a file with the content b"stuck" last until `leave` is set; other files are decoded at once."""
    leave = threading.Event()
    monkeypatch.setattr(uploads, "decode", lambda content: content == b"stuck" and leave.wait(20))
    monkeypatch.setattr(uploads, "SLOW_S", 0.05)
    yield leave
    leave.set()


async def use(decoder, content, n_pixels=1):
    async with decoder.decoded(Upload("a", content, n_pixels)) as pixels:
        return pixels


def test_stuck_decoders_keep_no_other_image_from_being_decoded(stuck):
    slow = SimpleNamespace(count=0)

    def count():
        slow.count += 1

    async def main():
        decoder = decoder_of(on_slow=count)
        n_stuck = N_THREADS + MAX_SLOW - 1
        waiting = [asyncio.create_task(use(decoder, b"stuck")) for _ in range(n_stuck)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await use(decoder, b"good") is False
        assert slow.count >= n_stuck - N_THREADS
        stuck.set()
        assert await asyncio.gather(*waiting) == [True] * n_stuck

    asyncio.run(main())


def test_a_request_ends_before_its_stuck_decoder_whose_pixels_count_on(stuck):
    async def main():
        decoder = decoder_of()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await use(decoder, b"stuck", 60 * MEGA)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await use(decoder, b"good", 60 * MEGA)
        stuck.set()
        async with asyncio.timeout(5):
            await use(decoder, b"good", 60 * MEGA)

    asyncio.run(main())
