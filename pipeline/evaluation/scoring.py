"""A compiled function that scores batches of images, for repeated calls."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.models.network import as_tf_function
from pipeline.models.tf import keras

Batch = npt.NDArray[np.uint8]  # (n, height, width, 3), RGB
Scorer = Callable[[Batch], npt.NDArray[np.float32]]


def scorer(model: keras.Model) -> Scorer:
    """Return a function from a batch of images of one size to their probabilities of a crack, (n,).

    `model` is an exported graph. It is traced once for all sizes.
    """
    compute = as_tf_function(model)

    def score(batch: Batch) -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = compute(batch)["probability"].numpy()
        return probabilities

    return score
