"""One compiled function that scores images, for those who score again and again."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.tf import keras, tf

Batch = npt.NDArray[np.uint8]  # (n, height, width, 3), RGB
Scorer = Callable[[Batch], npt.NDArray[np.float32]]


def scorer(model: keras.Model) -> Scorer:
    """Return a function from a batch of images of one size to their probabilities of a crack, (n,).

    `model` is an exported graph. It is traced once, for all sizes, as `Classifier` runs it.
    """
    compute = tf.function(
        lambda batch: model(batch, training=False)["probability"],
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
    )

    def score(batch: Batch) -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = compute(batch).numpy()
        return probabilities

    return score
