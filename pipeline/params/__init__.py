"""Typed, immutable models of params.yaml. Unknown keys are errors."""

from pipeline.params.data_sections import Contract, Copies, Dataset, Fractions, Limits, Masks, Split
from pipeline.params.operation_sections import Flow, Map, Monitor, Promote, Serve
from pipeline.params.params_file import Params, load_params, named
from pipeline.params.section import CONTENT_ID_LENGTH, Label, Precision, Section
from pipeline.params.training_sections import (
    Augmentation,
    Backbone,
    ConvHead,
    Decide,
    DrawnCracks,
    Finetune,
    MosaicSet,
    Phase,
    Probe,
)
