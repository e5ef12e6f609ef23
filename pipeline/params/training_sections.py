"""The sections of params.yaml about models: backbones, candidates, their selection and the decision."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params.section import Name, Precision, Section, Share


class Backbone(Section):
    """A network pre-trained on ImageNet, and the size of its input."""

    architecture: str
    image_size_px: int = Field(ge=32, le=1024)
    feature_layers: tuple[str, ...] = Field(
        default=(), description="convolutions whose mean and maximum are the features; none: the mean of the last one"
    )
    training_precision: Precision = Field(
        default="f32",
        description="of the features that a probe is trained on; bf16 takes half the time on CPUs that support it",
    )


class Embed(Section):
    """Where the stage `embed` runs."""

    dask_address: str | None = Field(description="of a Dask scheduler, such as tcp://host:8786; null: this machine")


class MosaicSet(Section):
    """Training images composed of shrunken ones, so that cracks are thin and surrounded by concrete."""

    of: tuple[Name, ...] = Field(min_length=1, description="data sets whose training images are shrunken")
    cells_a_side: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(min_length=1)
    n_images: int = Field(ge=12, description="for each of `cells_a_side`")


class Probe(Section):
    """Logistic regression on cached features of the frozen backbone."""

    kind: Literal["probe"]
    backbone: Name
    n_components: int = Field(ge=1, description="principal components of the features to use")
    l2_penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1, description="L2 penalties per image; grouped cross-validation chooses one"
    )
    orientations: tuple[Name, ...] = Field(default=(), description="data sets trained on in all eight orientations")
    mosaics: MosaicSet | None = None
    hairline_mosaics: MosaicSet | None = Field(
        default=None,
        description="mosaics of intact cells with synthetic hairline cracks; a separate head is trained on them",
    )
    seed: int


class Phase(Section):
    """One phase of fine-tuning."""

    optimizer: Literal["adam", "rmsprop"]
    learning_rate: float = Field(gt=0)
    max_epochs: int = Field(ge=1)
    patience_epochs: int | None = Field(ge=1, description="null: train for all epochs and keep the last weights")


class Augmentation(Section):
    """Random changes of training images."""

    flips: Literal["horizontal", "vertical", "horizontal_and_vertical"]
    max_rotation_turns: float = Field(ge=0, le=0.5)


class Finetune(Section):
    """Train the head on the frozen backbone, then the upper blocks as well."""

    kind: Literal["finetune"]
    backbone: Name
    batch_size: int = Field(ge=1)
    dropout: Share
    augmentation: Augmentation
    head: Phase
    tuning: Phase
    unfreeze_from: str = Field(description="first layer of the backbone that the second phase trains")
    cached_augmentations: int | None = Field(
        ge=1,
        description="augmented versions of an image whose frozen layers are computed once and cached on disk; "
        "null: augment anew and compute all layers each epoch",
    )
    seed: int


class ConvHead(Section):
    """Train a small convolutional network on feature maps of the frozen backbone, beside a hidden layer on features."""

    kind: Literal["conv_head"]
    backbone: Name
    map_layers: tuple[str, ...] = Field(
        min_length=2, description="layers that return the feature maps, largest first; all get the size of the second"
    )
    tracer_size_px: int | None = Field(
        default=None,
        multiple_of=16,
        ge=64,
        description="side of the image for the tracer of crack lines, whose logit is then averaged with the others",
    )
    n_channels: int = Field(ge=2, description="of the convolutions")
    n_hidden: int = Field(ge=1, description="units of the hidden layer on the features")
    dropout: Share
    feature_dropout: Share
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, description="at the start; it falls to 0 along a cosine")
    weight_decay: float = Field(ge=0)
    label_smoothing: Share
    n_epochs: int = Field(ge=1)
    seed: int


Candidate = Annotated[Probe | Finetune | ConvHead, Field(discriminator="kind")]


class DrawnCracks(Section):
    """Train the tracer of crack lines on cracks drawn on the intact images of the train side."""

    kind: Literal["drawn_cracks"]
    n_steps: int = Field(ge=1, description="of training, of 8 images each; 4500 take half an hour on a core")
    seed: int


class Select(Section):
    """How candidates are compared on validation."""

    external_weight: Share = Field(description="of photos of external test sets; data sets trained on have the rest")


class Evaluate(Section):
    """What is measured besides the scores on test and on the external test sets."""

    leave_one_source_out: bool = Field(
        default=False, description="train the best candidate again without each source, and score it on that one"
    )


class Decide(Section):
    """Costs of mistakes and how much people can review, from which threshold and review band follow on validation."""

    missed_crack_cost: float = Field(gt=0, description="relative to the cost of a false alarm")
    false_alarm_cost: float = Field(gt=0)
    prevalence: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of cracks that probabilities and threshold assume; null: that of the validation images",
    )
    review_budget: Share = Field(
        default=0.15,
        description="of the validation images of a data set, at most, that are for review as the model is unsure",
    )
