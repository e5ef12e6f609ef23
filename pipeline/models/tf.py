"""TensorFlow and Keras, with Keras's own defaults whatever the user's are, and without TensorFlow's start-up messages.

A user's keras.json or variables such as KERAS_BACKEND would change what a network computes, or stop it: Keras reads
them once, when it is imported. So they are replaced before.

No setting suppresses all start-up messages (some are written before TensorFlow sets up its log), which users can do
nothing about. So standard error is buffered while the libraries load, and printed only if loading fails.
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


for _name in [name for name in os.environ if name.startswith("KERAS_")]:
    del os.environ[_name]
os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull}  # no folder, so it has no keras.json

with _buffered_stderr():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
