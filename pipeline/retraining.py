"""What the retraining flow does, as plain functions: be alone, keep batches with DVC and git, notice an old model."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.batches import INBOX
from pipeline.errors import RefusedError


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock on the batches of a project; it goes with the process that holds it, however that ends.

    Raises:
        RefusedError: another process holds it.
    """
    path = root / INBOX / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                "A retraining is running, or someone is taking batches. Wait until it has ended."
            ) from None
        yield
