"""The starter model, which ships with the project: a head trained on METU and SDNET2018 together.

    python -m pipeline.starter --params params.yaml --model models/mosaics-lite0 [--check]

writes starter.npz beside this file from a probe that was trained with examples/params.metu-and-sdnet.yaml; with --check
it compares instead. The file holds the head, the calibration and the decision; the weights of the backbone come from
their package. docs/starter-model.md is its card.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np

from pipeline.calibration import Calibration, Platt
from pipeline.classifier import Classifier
from pipeline.decision import Decision
from pipeline.errors import RefusedError
from pipeline.export import calibrated, linear_classifier
from pipeline.files import replacing
from pipeline.linear import LinearHead
from pipeline.params import Backbone, load_params, named
from pipeline.stage import run_main

log = logging.getLogger(__name__)

STARTER_FILE = Path(__file__).with_name("starter.npz")
TOLERANCE = 0.02  # of the largest weight: processors differ in the last bits, which training carries on


def write_starter(classifier: Classifier, backbone: Backbone, path: Path) -> None:
    """Write the small part of a probe that its backbone's package does not have."""
    kernel, bias = classifier.model.get_layer("head").get_weights()  # (n_features, 1), (1,)
    slopes, intercepts = classifier.model.get_layer("calibration").get_weights()  # (1, n_curves), (n_curves,)
    arrays = {"kernel": kernel[:, 0], "bias": bias, "slopes": slopes[0], "intercepts": intercepts}
    if len(intercepts) > 1:
        likeness, likeness_bias = classifier.model.get_layer("likeness").get_weights()
        arrays |= {"likeness": likeness, "likeness_bias": likeness_bias}
    settings = {"backbone": backbone.model_dump(), "decision": classifier.decision.as_dict()}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays, settings=np.array(json.dumps(settings)))


def load_starter(path: Path = STARTER_FILE) -> Classifier:
    """Return the starter model, ready to score. Raises CracksError where the backbone's package is missing."""
    with np.load(path) as arrays:
        settings = json.loads(str(arrays["settings"]))
        head = LinearHead(arrays["kernel"], float(arrays["bias"][0]))
        curves = tuple(Platt(*map(float, curve)) for curve in zip(arrays["slopes"], arrays["intercepts"], strict=True))
        likeness: tuple[LinearHead, ...] = ()
        if len(curves) > 1:
            kernels, biases = arrays["likeness"].T, arrays["likeness_bias"]
            likeness = tuple(LinearHead(kernel, float(bias)) for kernel, bias in zip(kernels, biases, strict=True))
    classifier = linear_classifier(Backbone(**settings["backbone"]), head)
    return Classifier(calibrated(classifier, Calibration(curves, likeness)), Decision(**settings["decision"]))


def difference(one: Path, other: Path) -> float:
    """Return how far the weights of two starter files are apart, as a share of the largest weight of their kind."""
    with np.load(one) as ours, np.load(other) as theirs:
        kinds = set(ours) - {"settings"}
        if kinds != set(theirs) - {"settings"} or any(ours[kind].shape != theirs[kind].shape for kind in kinds):
            return float("inf")
        apart = np.max([np.abs(ours[kind] - theirs[kind]).max() / np.abs(ours[kind]).max() for kind in kinds])
        return float(apart) if np.isfinite(apart) else float("inf")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, required=True, help="params.yaml that the model was trained with")
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained candidate")
    parser.add_argument("--check", action="store_true", help="compare with the file that is there")
    args = parser.parse_args()
    params = load_params(args.params)
    backbone = params.backbones[named(params.candidates, args.model.name, "candidate").backbone]
    target = STARTER_FILE.with_name("starter-new.npz") if args.check else STARTER_FILE
    write_starter(Classifier.load(args.model), backbone, target)
    if not args.check:
        log.info("%s: %d bytes", target, target.stat().st_size)
        return
    apart = difference(STARTER_FILE, target)
    target.unlink()
    if apart > TOLERANCE:
        raise RefusedError(
            f"The model differs from the starter by {apart:.3f} of its largest weight: it is another one."
        )
    log.info("The same model: at most %.5f of the largest weight apart", apart)


if __name__ == "__main__":
    run_main(main)
