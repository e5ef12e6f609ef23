"""Linear functions of features, learned on standardised ones and kept so that they apply to plain ones."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Added to the standard deviation of a feature, typically 0.4: one that is constant in training would else count a
# hundred-thousandfold in the image where it is not.
STD_OFFSET = 0.1
BLOCK_ROWS = 64

FloatVector = npt.NDArray[np.float64]


class Scale(NamedTuple):
    """Mean and standard deviation of each feature, both (n_features,)."""

    mean: FloatVector
    std: FloatVector

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> "Scale":
        """Return the scale of features, (n, n_features), taken in single precision; sums are in double."""
        # In blocks that fit the cache, and by way of float32: NumPy's own takes five times as long on half precision.
        total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for start in range(0, len(features), BLOCK_ROWS):
            block = features[start : start + BLOCK_ROWS].astype(np.float32).astype(np.float64)
            total += block.sum(axis=0)
            squares += np.einsum("ij,ij->j", block, block)
        mean = total / len(features)
        variance = np.maximum(squares / len(features) - mean**2, 0)  # rounding makes less than nothing of a constant
        return cls(mean, np.sqrt(variance) + STD_OFFSET)

    def standardised(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return features, (n, n_features), less their mean over their standard deviation."""
        standard = features.astype(np.float32)
        standard -= self.mean.astype(np.float32)
        standard /= self.std.astype(np.float32)
        return standard


class LinearHead(NamedTuple):
    """logit = features @ kernel + bias; kernel float32, (n_features,)."""

    kernel: npt.NDArray[np.float32]
    bias: float

    @classmethod
    def from_standardised(cls, coefficients: FloatVector, intercept: float, scale: Scale) -> "LinearHead":
        """Return the head that does on plain features what `coefficients`, (n_features,), do on standardised ones."""
        kernel = coefficients / scale.std
        return cls(kernel.astype(np.float32), float(intercept - scale.mean @ kernel))

    def logits(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return the logit of each row of features, (n, n_features)."""
        return features.astype(np.float32) @ self.kernel + np.float32(self.bias)
