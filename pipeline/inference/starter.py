"""The starter model, which ships with the project: a head trained on METU and SDNET2018 together.

starter.npz contains the head, the calibration and the decision rule; starter_detector.npz the out-of-distribution
detector. The weights of the backbone come from their package. `build_starter` writes the files; the model card is
docs/starter-model.md.
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
from pipeline.models.decision import Decision
from pipeline.models.linear_head import LinearHead, linear_classifier
from pipeline.params import Backbone

N_GOLDEN = 8  # they suffice to compare two implementations of a graph


def load_starter(path: Path = STARTER_FILE) -> Classifier:
    """Return the starter model. Raises CracksError if the package of its backbone is missing."""
    with np.load(path) as arrays:
        settings = json.loads(str(arrays["settings"]))
        head = LinearHead(arrays["kernel"], float(arrays["bias"][0]))
        curves = tuple(Platt(*map(float, curve)) for curve in zip(arrays["slopes"], arrays["intercepts"], strict=True))
        membership: tuple[LinearHead, ...] = ()
        if len(curves) > 1:
            kernels, biases = arrays["likeness"].T, arrays["likeness_bias"]
            membership = tuple(LinearHead(kernel, float(bias)) for kernel, bias in zip(kernels, biases, strict=True))
    classifier = linear_classifier(Backbone(**settings["backbone"]), head)
    return Classifier(calibrated(classifier, Calibration(curves, membership)), Decision(**settings["decision"]))


def write_served_starter(folder: Path) -> None:
    """Write the starter model as a served model, with golden images and its out-of-distribution detector."""
    coarse = np.random.default_rng(0).integers(60, 220, (N_GOLDEN, 16, 16, 3), np.uint8)
    write_served(load_starter(), [np.asarray(Image.fromarray(blots).resize((128, 128))) for blots in coarse], folder)
    shutil.copyfile(STARTER_DETECTOR, folder / DETECTOR_FILE)
