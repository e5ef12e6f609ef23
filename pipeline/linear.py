"""Linear functions of features, learned on standardised ones and kept so that they apply to plain ones."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Added to the standard deviation of a feature, typically 0.4: one that is constant in training would else count a
# hundred-thousandfold in the image where it is not.
STD_OFFSET = 0.1

FloatVector = npt.NDArray[np.float64]


class Scale(NamedTuple):
    """Mean and standard deviation of each feature, both (n_features,)."""

    mean: FloatVector
    std: FloatVector

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> "Scale":
        """Return the scale of features, (n, n_features)."""
        mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
        return cls(mean, std + STD_OFFSET)

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
    def on_plain_features(cls, coefficients: FloatVector, intercept: float, scale: Scale) -> "LinearHead":
        """Return the head that does on plain features what `coefficients`, (n_features,), do on standardised ones."""
        kernel = coefficients / scale.std
        return cls(kernel.astype(np.float32), float(intercept - scale.mean @ kernel))

    def logits(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return the logit of each row of features, (n, n_features)."""
        return features.astype(np.float32) @ self.kernel + np.float32(self.bias)
