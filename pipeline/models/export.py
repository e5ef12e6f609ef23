"""The exported graph: from uint8 RGB of any size to the calibrated probability of a crack and the features."""

import numpy as np

from pipeline.models.backbones import build_backbone
from pipeline.models.calibration import Calibration
from pipeline.models.linear_head import LinearHead
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras
from pipeline.params import Backbone


def linear_classifier(backbone: Backbone, head: LinearHead) -> keras.Model:
    """Return the uncalibrated graph: a frozen backbone and a linear head on its features."""
    dense = keras.layers.Dense(1, name="head")
    network = build_backbone(backbone.architecture, backbone.feature_layers)
    classifier = build_classifier(network, backbone.image_size_px, [dense])
    dense.set_weights([head.kernel[:, None], np.array([head.bias], np.float32)])
    return classifier


def calibrated(classifier: keras.Model, calibration: Calibration) -> keras.Model:
    """Return the exported graph: {"probability": (batch,), "features": (batch, n_features)}, both float32."""
    features = classifier.output["features"]
    slopes, intercepts = (np.array(values, np.float32) for values in zip(*calibration.curves, strict=True))
    curves = keras.layers.Dense(len(slopes), activation="sigmoid", name="calibration")
    probability = curves(classifier.output["logit"])  # (batch, n_curves)
    curves.set_weights([slopes[None, :], intercepts])
    if calibration.membership:
        membership = keras.layers.Dense(len(calibration.membership), activation="softmax", name="likeness")
        shares = membership(features)  # (batch, n_curves)
        kernels = np.stack([head.kernel for head in calibration.membership], axis=1)
        membership.set_weights([kernels, np.array([head.bias for head in calibration.membership], np.float32)])
        probability = keras.layers.Dot(axes=1, name="mixture")([shares, probability])  # (batch, 1)
    outputs = {"probability": keras.layers.Reshape((), name="probability")(probability), "features": features}
    return keras.Model(classifier.input, outputs, name="crack_classifier")
