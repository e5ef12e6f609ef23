"""TensorFlow and Keras, imported without TensorFlow's start-up messages, which users can do nothing about.

No setting suppresses all of them (some are written before TensorFlow sets up its log). So standard error is buffered
while the libraries load, and printed only if loading fails.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def _buffered_stderr() -> Iterator[None]:
    sys.stderr.flush()
    shown = os.dup(STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), STDERR)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, STDERR)
            os.close(shown)


with _buffered_stderr():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
