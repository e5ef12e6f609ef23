"""Build the files of the starter model; docs/starter-model.md describes its data and when to build it again.

    python -m pipeline.inference.build_starter head --params params.yaml --model models/conv-lite0 [--check]
    python -m pipeline.inference.build_starter detector --datasets data/datasets --manifest data/manifest.parquet
    python -m pipeline.inference.build_starter external --name "UAV75, concrete" --cracks uav75.csv
    python -m pipeline.inference.build_starter served --out data/serving/starter

`head` writes starter.npz from a candidate that was trained with examples/params.starter.yaml; with --check it
only compares their scores on the test images. `detector` writes starter_detector.npz, the out-of-distribution detector,
from the data of the same params after `dvc repro split`. `external` adds to it what the model missed of cracks
on structures that it was not trained on. `served` writes the served model, with which a server answers
until another model is in production.
"""

import argparse
import hashlib
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from pipeline.data.images import LabelledImages
from pipeline.data.training_images import images_of_side
from pipeline.errors import CracksError, RefusedError
from pipeline.files import replacing
from pipeline.inference.conversion import write_served
from pipeline.inference.kept_starter import STARTER_DETECTOR, STARTER_FILE, keep_starter
from pipeline.inference.ood_fitting import fit_detector
from pipeline.inference.out_of_distribution import OutOfDistributionDetector, Surface
from pipeline.inference.served import ServedModel, served_outputs
from pipeline.inference.starter import load_starter
from pipeline.models.classifier import Classifier
from pipeline.models.conv_head import HEAD, stored_weights
from pipeline.models.model_files import TRACER_WEIGHTS
from pipeline.params import Backbone, ConvHead, load_params, named
from pipeline.stage import run_main

log = logging.getLogger(__name__)

TOLERANCE = 0.02  # of AUROC: training on several cores does not give the same weights twice


def write_starter(classifier: Classifier, backbone: Backbone, candidate: ConvHead, path: Path) -> None:
    """Write head, calibration and decision of a classifier; the weights of its backbone come from a package."""
    slopes, intercepts = classifier.model.get_layer("calibration").get_weights()  # (1, n_curves), (n_curves,)
    kernels, biases = classifier.model.get_layer("likeness").get_weights()  # (n_features, n_curves), (n_curves,)
    weights = stored_weights(classifier.model.get_layer(HEAD))
    settings = {
        "backbone": backbone.model_dump(),
        "candidate": candidate.model_dump(),
        "decision": classifier.decision.as_dict(),
        "tracer": hashlib.sha256(TRACER_WEIGHTS.read_bytes()).hexdigest(),  # its weights are not in the file
        "n_weights": len(weights),
    }
    arrays: dict[str, Any] = {f"head_{index}": weight for index, weight in enumerate(weights)}
    arrays |= {"slopes": slopes[0], "intercepts": intercepts, "kernels": kernels, "biases": biases}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays, settings=np.array(json.dumps(settings)))


def auroc_by_dataset(classifier: Classifier, manifest: Path, datasets: Path) -> "pd.Series[float]":
    """Return the AUROC on the test images of each data set."""
    tested = images_of_side(pd.read_parquet(manifest), "test", datasets)
    probabilities = classifier.probabilities(tested, progress="scoring")
    table = pd.DataFrame({"label": tested.labels, "probability": probabilities})
    by_dataset = table.groupby(tested.rows["dataset"].to_numpy(str))
    return by_dataset.apply(lambda part: float(roc_auc_score(part["label"], part["probability"])))


def _head(args: argparse.Namespace) -> None:
    params = load_params(args.params)
    candidate = named(params.candidates, args.model.name, "candidate")
    if not isinstance(candidate, ConvHead):
        raise CracksError(f"{args.model.name} in {args.params} is a {candidate.kind}; the starter is a conv_head.")
    classifier = Classifier.load(args.model)
    if args.check:
        _check(classifier, args)
        return
    write_starter(classifier, params.backbones[candidate.backbone], candidate, STARTER_FILE)
    log.info("%s: %d bytes", STARTER_FILE, STARTER_FILE.stat().st_size)


def _check(classifier: Classifier, args: argparse.Namespace) -> None:
    ours, theirs = (auroc_by_dataset(model, args.manifest, args.datasets) for model in (load_starter(), classifier))
    for name in ours.index:
        log.info("%s: AUROC %.4f of %s, %.4f of this model", name, ours[name], STARTER_FILE.name, theirs[name])
    if (difference := (ours - theirs).abs().max()) > TOLERANCE:
        raise RefusedError(
            f"AUROC differs by {difference:.3f} from that of {STARTER_FILE.name}, more than {TOLERANCE}. "
            "The model was trained on other data, or with other settings."
        )


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
    head.add_argument("--check", action="store_true", help="only compare with the existing file, on test images")
    head.add_argument("--datasets", type=Path, default=Path("data/datasets"), help="folder with a folder per data set")
    head.add_argument("--manifest", type=Path, default=Path("data/manifest.parquet"), help="Parquet file of split")
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
