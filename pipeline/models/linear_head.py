"""Linear heads: fitted on standardised features, stored so that they apply to raw features."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.models.backbones import build_backbone
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras
from pipeline.params import Backbone

# Added to the standard deviation of a feature, typically 0.4. Otherwise a feature that is constant in training would
# count a hundred-thousandfold in an image in which it is not.
STD_OFFSET = 0.1
BLOCK_ROWS = 64

FloatVector = npt.NDArray[np.float64]


class Scale(NamedTuple):
    """Mean and standard deviation of each feature, both (n_features,)."""

    mean: FloatVector
    std: FloatVector

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> "Scale":
        """Return the scale of features, (n, n_features), read in single precision and summed in double."""
        # In blocks that fit the CPU's cache, and via float32: NumPy's own take five times as long on half precision.
        total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for start in range(0, len(features), BLOCK_ROWS):
            block = features[start : start + BLOCK_ROWS].astype(np.float32).astype(np.float64)
            total += block.sum(axis=0)
            squares += np.einsum("ij,ij->j", block, block)
        mean = total / len(features)
        variance = np.maximum(squares / len(features) - mean**2, 0)  # a constant can get less than 0 by rounding
        return cls(mean, np.sqrt(variance) + STD_OFFSET)

    def standardised(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return features, (n, n_features), minus their mean, divided by their standard deviation."""
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
        """Return the head on raw features that equals `coefficients`, (n_features,), on standardised ones."""
        kernel = coefficients / scale.std
        return cls(kernel.astype(np.float32), float(intercept - scale.mean @ kernel))

    def logits(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return the logit of each row of features, (n, n_features)."""
        return features.astype(np.float32) @ self.kernel + np.float32(self.bias)


def linear_classifier(backbone: Backbone, head: LinearHead) -> keras.Model:
    """Return the uncalibrated graph: a frozen backbone and a linear head on its features."""
    dense = keras.layers.Dense(1, name="head")
    network = build_backbone(backbone.architecture, backbone.feature_layers)
    classifier = build_classifier(network, backbone.image_size_px, [dense])
    dense.set_weights([head.kernel[:, None], np.array([head.bias], np.float32)])
    return classifier
