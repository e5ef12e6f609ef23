"""The starter model, which ships with the project: a head trained on METU and SDNET2018 together.

starter.npz contains the head, the calibration and the decision rule; starter_detector.npz the out-of-distribution
detector. The weights of the backbone come from their package. `build_starter` writes the files; the model card is
docs/starter-model.md.
"""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.data.demo import Recipe, draw
from pipeline.data.images import decode
from pipeline.inference.conversion import write_served
from pipeline.inference.kept_starter import STARTER_DETECTOR, STARTER_FILE
from pipeline.inference.out_of_distribution import DETECTOR_FILE
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.classifier import Classifier
from pipeline.models.decision import Decision
from pipeline.models.linear_head import LinearHead, linear_classifier
from pipeline.params import Backbone

N_GOLDEN = 8  # drawn images; they suffice to compare two implementations of a graph
GOLDEN = Recipe(
    seed=1,
    size_px=128,
    images_per_class=N_GOLDEN,
    mirrored_per_class=0,
    jpeg_quality=90,
    crack_width_px=(0.9, 6.0),
    crack_darkness=(0.45, 0.95),
    look_alikes_crack=0.4,
    look_alikes_intact=0.8,
)


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
    golden = [decode(content) for _, content in islice(draw(GOLDEN), N_GOLDEN)]
    write_served(load_starter(), golden, folder)
    shutil.copyfile(STARTER_DETECTOR, folder / DETECTOR_FILE)
