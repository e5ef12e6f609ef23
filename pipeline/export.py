"""The graph as it is exported: from uint8 RGB of any size to the calibrated probability of a crack and the features."""

import numpy as np

from pipeline.backbones import build_backbone
from pipeline.calibration import Calibration, Platt
from pipeline.linear import LinearHead
from pipeline.network import build_classifier
from pipeline.params import Backbone
from pipeline.tf import keras


def linear_classifier(backbone: Backbone, head: LinearHead) -> keras.Model:
    """Return the uncalibrated graph of a frozen backbone and a linear head on its features."""
    dense = keras.layers.Dense(1, name="head")
    network = build_backbone(backbone.architecture, backbone.taps)
    classifier = build_classifier(network, backbone.image_size_px, [dense])
    dense.set_weights([head.kernel[:, None], np.array([head.bias], np.float32)])
    return classifier


def calibrated(classifier: keras.Model, calibration: Calibration) -> keras.Model:
    """Return the exported graph: {"probability": (batch,), "features": (batch, n_features)}, both float32."""
    logit, features = classifier.output["logit"], classifier.output["features"]
    probability = _curve(logit, calibration.curve, "calibration")  # (batch, 1)
    if calibration.foreign is not None:
        strangeness = keras.layers.Dense(1, activation="sigmoid", name="strangeness")
        share = strangeness(features)  # (batch, 1)
        head = calibration.foreign.strangeness
        strangeness.set_weights([head.kernel[:, None], np.array([head.bias], np.float32)])
        foreign = _curve(logit, calibration.foreign.curve, "calibration_foreign")
        difference = keras.layers.Subtract(name="difference")([foreign, probability])
        moved = keras.layers.Multiply(name="share_of_difference")([share, difference])
        probability = keras.layers.Add(name="mixture")([probability, moved])
    outputs = {"probability": keras.layers.Reshape((), name="probability")(probability), "features": features}
    return keras.Model(classifier.input, outputs, name="crack_classifier")


def _curve(logit: keras.KerasTensor, curve: Platt, name: str) -> keras.KerasTensor:
    layer = keras.layers.Dense(1, activation="sigmoid", name=name)
    probability = layer(logit)
    layer.set_weights([np.array([[curve.slope]], np.float32), np.array([curve.intercept], np.float32)])
    return probability
