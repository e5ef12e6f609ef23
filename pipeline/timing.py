"""How long calls take."""

import time
from collections.abc import Callable


def times_s(call: Callable[[], object], n: int) -> list[float]:
    """Return the wall seconds of each of `n` calls."""
    times = []
    for _ in range(n):
        started_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_s)
    return times
