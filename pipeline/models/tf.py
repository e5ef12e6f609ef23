"""TensorFlow and Keras, with Keras's own defaults whatever the user's are, and without start-up messages."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2


# No setting suppresses all start-up messages, which users can do nothing about: some are written before TensorFlow sets
# up its log. So standard error is buffered while the libraries load, and printed only if loading fails.
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


# A user's keras.json, or variables such as KERAS_BACKEND, which Keras reads when it is imported, would change what a
# network computes, or stop it.
for _name in [name for name in os.environ if name.startswith("KERAS_")]:
    del os.environ[_name]
os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull}  # no folder, so it has no keras.json

with _buffered_stderr():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
