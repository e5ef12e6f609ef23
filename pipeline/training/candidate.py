"""Training a candidate of any kind: fit it, calibrate it, and choose its threshold and review band on validation."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import LabelledImages
from pipeline.models.calibration import Calibration, calibrated, fit_calibration
from pipeline.models.classifier import Classifier
from pipeline.models.decision import choose_decision, prevalence_weights
from pipeline.models.linear_head import linear_classifier
from pipeline.models.metrics import Probabilities
from pipeline.models.network import logits_and_features
from pipeline.params import ConvHead, Params, Probe
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.conv_head_fitting import fit_conv_head
from pipeline.training.features import Features, features_of
from pipeline.training.finetune import fit_finetune
from pipeline.training.probe import fit_probe, rows_by_head


def train_candidate(
    params: Params,
    name: str,
    train: LabelledImages,
    validation: LabelledImages,
    features: Path,
    unfinished: Path,
    history: TrainingHistory,
) -> tuple[Classifier, Probabilities]:
    """Train candidate `name`, calibrate it and choose its decision rule; return it and its probabilities on validation.

    `features` has those of all these images. Further features and activations are kept in `unfinished`, which several
    trainings may share. A killed training is resumed from the folder of `history`, which is its own.
    """
    candidate = params.candidates[name]
    backbone = params.backbones[candidate.backbone]
    if isinstance(candidate, Probe):
        head = fit_probe(rows_by_head(backbone, candidate, train, features, unfinished), candidate, history)
        known = features_of(validation.rows, features)
        graph, logits = linear_classifier(backbone, head), head.logits(known)
    elif isinstance(candidate, ConvHead):
        graph, logits, known = fit_conv_head(backbone, train, validation, candidate, unfinished, history)
    else:
        graph = fit_finetune(backbone, train, validation, candidate, history)
        logits, known = logits_and_features(graph, validation, progress="validating")
    calibration = calibrate(params, name, validation, logits, known)
    probabilities = calibration.probabilities(logits, known)
    names = validation.rows["dataset"].to_numpy(str)
    decision = choose_decision(validation.labels, probabilities, names, params.decide)
    return Classifier(calibrated(graph, calibration), decision), probabilities


def calibrate(
    params: Params, name: str, validation: LabelledImages, logits: npt.NDArray[np.float32], features: Features
) -> Calibration:
    """Return the calibration of candidate `name`, for the stated prevalence, by its logits on validation.

    The curves of the data sets that a convolutional head is trained on share a slope, as it learns from them together.
    """
    names = validation.rows["dataset"].to_numpy(str)
    weights = prevalence_weights(validation.labels, names, params.decide.prevalence)
    one_slope = params.split.train_on if isinstance(params.candidates[name], ConvHead) else ()
    return fit_calibration(validation.labels, logits, features, names, weights, one_slope)
