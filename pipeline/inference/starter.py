"""The starter model, which ships with the project: a head trained on METU and SDNET2018 together.

starter.npz contains the convolutional head, the calibration and the decision rule; starter_detector.npz the
out-of-distribution detector. The weights of the backbone come from their package. `build_starter` writes the files; the
model card is docs/starter-model.md.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.inference.conversion import write_served
from pipeline.inference.kept_starter import STARTER_DETECTOR, STARTER_FILE
from pipeline.inference.out_of_distribution import DETECTOR_FILE
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.classifier import Classifier
from pipeline.models.conv_head import activations_of, build_conv_head, conv_head_classifier
from pipeline.models.decision import Decision
from pipeline.models.linear_head import LinearHead
from pipeline.params import Backbone, ConvHead

N_GOLDEN = 8  # they suffice to compare two implementations of a graph


def load_starter(path: Path = STARTER_FILE) -> Classifier:
    """Return the starter model. Raises CracksError if the package of its backbone is missing."""
    with np.load(path) as arrays:
        settings = json.loads(str(arrays["settings"]))
        weights = [arrays[f"head_{index}"] for index in range(settings["n_weights"])]
        curves = zip(arrays["slopes"].tolist(), arrays["intercepts"].tolist(), strict=True)
        membership = zip(arrays["kernels"].T, arrays["biases"].tolist(), strict=True)
        calibration = Calibration(
            tuple(Platt(*curve) for curve in curves),
            tuple(LinearHead(*head) for head in membership),
            averages_logits=True,
        )
    backbone, params = Backbone(**settings["backbone"]), ConvHead(**settings["candidate"])
    activations = activations_of(backbone, params)
    head = build_conv_head(activations, params)
    head.set_weights(weights)
    classifier = conv_head_classifier(activations, head)
    return Classifier(calibrated(classifier, calibration), Decision(**settings["decision"]))


def write_served_starter(folder: Path) -> None:
    """Write the starter model as a served model, with golden images and its out-of-distribution detector."""
    coarse = np.random.default_rng(0).integers(60, 220, (N_GOLDEN, 16, 16, 3), np.uint8)
    write_served(load_starter(), [np.asarray(Image.fromarray(blots).resize((128, 128))) for blots in coarse], folder)
    shutil.copyfile(STARTER_DETECTOR, folder / DETECTOR_FILE)
