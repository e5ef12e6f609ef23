"""Build the files of the starter model; docs/starter-model.md describes its data and when to build it again.

    python -m pipeline.inference.build_starter head --params params.yaml --model models/mosaics-lite0 [--check]
    python -m pipeline.inference.build_starter detector --datasets data/datasets --manifest data/manifest.parquet
    python -m pipeline.inference.build_starter external --name "sdnet Walls" --cracks walls.csv
    python -m pipeline.inference.build_starter served --out data/serving/starter

`head` writes starter.npz from a probe that was trained with examples/params.metu-and-sdnet.yaml; with --check it only
compares the probe with the existing file. `detector` writes starter_detector.npz, the out-of-distribution detector,
from the data of the same params after `dvc repro split`. `external` adds to it what the model missed of cracks
on structures that it was not trained on. `served` writes the served model, with which a server answers
until another model is in production.
"""

import argparse
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.images import LabelledImages
from pipeline.errors import RefusedError
from pipeline.files import replacing
from pipeline.inference.conversion import write_served
from pipeline.inference.kept_starter import STARTER_DETECTOR, STARTER_FILE, keep_starter
from pipeline.inference.ood_fitting import fit_detector
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, Surface
from pipeline.inference.served import ServedModel, served_outputs
from pipeline.inference.starter import load_starter
from pipeline.models.classifier import Classifier
from pipeline.params import Backbone, load_params, named
from pipeline.stage import run_main

log = logging.getLogger(__name__)

TOLERANCE = 0.02  # of the largest weight: processors differ in the last bits, and training amplifies that


def write_starter(classifier: Classifier, backbone: Backbone, path: Path) -> None:
    """Write what a probe adds to its backbone, which comes from a package: head, calibration and decision."""
    kernel, bias = classifier.model.get_layer("head").get_weights()  # (n_features, 1), (1,)
    slopes, intercepts = classifier.model.get_layer("calibration").get_weights()  # (1, n_curves), (n_curves,)
    arrays = {"kernel": kernel[:, 0], "bias": bias, "slopes": slopes[0], "intercepts": intercepts}
    if len(intercepts) > 1:
        membership, membership_bias = classifier.model.get_layer("likeness").get_weights()
        arrays |= {"likeness": membership, "likeness_bias": membership_bias}
    settings = {"backbone": backbone.model_dump(), "decision": classifier.decision.as_dict()}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays, settings=np.array(json.dumps(settings)))


def relative_difference(one: Path, other: Path) -> float:
    """Return the largest difference of the weights of two starter files, divided by the largest weight of an array."""
    with np.load(one) as ours, np.load(other) as theirs:
        kinds = set(ours) - {"settings"}
        if kinds != set(theirs) - {"settings"} or any(ours[kind].shape != theirs[kind].shape for kind in kinds):
            return float("inf")
        largest = np.max([np.abs(ours[kind] - theirs[kind]).max() / np.abs(ours[kind]).max() for kind in kinds])
        return float(largest) if np.isfinite(largest) else float("inf")


def _head(args: argparse.Namespace) -> None:
    params = load_params(args.params)
    backbone = params.backbones[named(params.candidates, args.model.name, "candidate").backbone]
    target = STARTER_FILE.with_name("starter-new.npz") if args.check else STARTER_FILE
    write_starter(Classifier.load(args.model), backbone, target)
    if not args.check:
        log.info("%s: %d bytes", target, target.stat().st_size)
        return
    largest = relative_difference(STARTER_FILE, target)
    target.unlink()
    if largest > TOLERANCE:
        raise RefusedError(
            f"The model differs from {STARTER_FILE.name} by {largest:.3f} of its largest weight, "
            f"more than {TOLERANCE}: it is a different model."
        )
    log.info("The same model as %s: differences of at most %.5f of the largest weight", STARTER_FILE.name, largest)


def _detector(args: argparse.Namespace) -> None:
    manifest = pd.read_parquet(args.manifest)
    with tempfile.TemporaryDirectory() as scratch:
        write_served(load_starter(), [], Path(scratch))
        model = ServedModel.load(Path(scratch))
    tested = manifest[manifest["split"] == "test"].reset_index(drop=True).assign(probability=np.nan)
    cracks = tested[tested["label"] == "crack"]  # the probabilities of intact images are not needed
    for positions, outputs in served_outputs(model, LabelledImages(cracks, args.datasets), progress="scoring"):
        tested.loc[cracks.index[positions], "probability"] = outputs["probability"]
    fit_detector(model, manifest, tested, args.datasets).save(STARTER_DETECTOR)
    log.info("%s: %d bytes", STARTER_DETECTOR, STARTER_DETECTOR.stat().st_size)


def _external(args: argparse.Namespace) -> None:
    detector, threshold = OutOfDistributionDetector.load(STARTER_DETECTOR), load_starter().decision.threshold
    probabilities = pd.read_csv(args.cracks)["probability"].dropna()
    missed = Surface(args.name, len(probabilities), int((probabilities < threshold).sum()), is_external=True)
    others = (surface for surface in detector.surfaces if surface.name != args.name)
    replace(detector, surfaces=(*others, missed)).save(STARTER_DETECTOR)
    log.info("%s: %s", STARTER_DETECTOR, missed)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    head = commands.add_parser("head", help="write starter.npz")
    head.add_argument("--params", type=Path, required=True, help="params.yaml that the model was trained with")
    head.add_argument("--model", type=Path, required=True, help="folder of the trained candidate")
    head.add_argument("--check", action="store_true", help="only compare with the existing file")
    head.set_defaults(run=_head)
    detector = commands.add_parser("detector", help="write starter_detector.npz")
    detector.add_argument("--datasets", type=Path, required=True, help="folder with a folder per data set")
    detector.add_argument("--manifest", type=Path, required=True, help="Parquet file that the stage split wrote")
    detector.set_defaults(run=_detector)
    external = commands.add_parser("external", help="add an external surface to starter_detector.npz")
    external.add_argument("--name", required=True, help="of the surface, as maps name it")
    external.add_argument("--cracks", type=Path, required=True, help="CSV of `cracks predict` on its cracked images")
    external.set_defaults(run=_external)
    served = commands.add_parser("served", help="write the served model, unless it is there")
    served.add_argument("--out", type=Path, required=True, help="folder to write")
    served.set_defaults(run=lambda args: keep_starter(args.out))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run_main(main)
