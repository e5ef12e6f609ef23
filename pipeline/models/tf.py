"""TensorFlow and Keras, imported without TensorFlow's start-up lines, on which a reader cannot act.

Some of them obey no setting (they are written before TensorFlow's log is set up), so standard error is held back while
the libraries load, and given out only if that fails.
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
