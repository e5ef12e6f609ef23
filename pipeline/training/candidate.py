"""Training a candidate of any kind: fit it, calibrate it, and choose its threshold and review band on validation."""

from pathlib import Path

from pipeline.data.images import LabelledImages
from pipeline.models.calibration import calibrated, fit_calibration, fit_calibration_with_common_curve
from pipeline.models.classifier import Classifier
from pipeline.models.decision import choose_decision, prevalence_weights
from pipeline.models.linear_head import linear_classifier
from pipeline.models.metrics import Probabilities
from pipeline.models.network import logits_and_features
from pipeline.params import ConvHead, Params, Probe
from pipeline.training.checkpoints import TrainingHistory
from pipeline.training.conv_head_fitting import fit_conv_head
from pipeline.training.features import features_of
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
    names = validation.rows["dataset"].to_numpy(str)
    weights = prevalence_weights(validation.labels, names, params.decide.prevalence)
    if isinstance(candidate, ConvHead):
        graph, logits, found, membership = fit_conv_head(backbone, train, validation, candidate, unfinished, history)
        calibration = fit_calibration_with_common_curve(validation.labels, logits, names, membership, weights)
    else:
        if isinstance(candidate, Probe):
            head = fit_probe(rows_by_head(backbone, candidate, train, features, unfinished), candidate, history)
            found = features_of(validation.rows, features)
            graph, logits = linear_classifier(backbone, head), head.logits(found)
        else:
            graph = fit_finetune(backbone, train, validation, candidate, history)
            logits, found = logits_and_features(graph, validation, progress="validating")
        calibration = fit_calibration(validation.labels, logits, found, names, weights)
    probabilities = calibration.probabilities(logits, found)
    decision = choose_decision(validation.labels, probabilities, names, params.decide)
    return Classifier(calibrated(graph, calibration), decision), probabilities
