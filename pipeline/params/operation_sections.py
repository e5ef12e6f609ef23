"""The sections of params.yaml about operation: registry, promotion, flows, monitoring, retraining, maps and the API."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from pipeline.params.section import Cron, Measure, Name, Section, Share, Timezone


class Register(Section):
    """How the best model is registered in MLflow."""

    name: Name


class Monitor(Section):
    """What is logged in production, and when a difference counts as drift."""

    log_max_mb: float = Field(gt=0, description="of the prediction log; its oldest files are deleted")
    n_reference_images: int = Field(ge=100, description="of each data set trained on, to compare production with")
    statistics: tuple[Measure | Literal["embedding"], ...] = Field(min_length=1, description="to compare")
    cron: Cron = Field(description="when to test for drift, such as 0 6 * * *")
    window_photos: int = Field(ge=2, description="minimum for an alarm")
    windows_per_month: float = Field(gt=0, description="maximum number of windows")
    false_alarms_per_month: float = Field(gt=0, description="over all windows and all statistics")
    n_to_label: int = Field(ge=1, description="images to export for labelling when there is drift")


class Margins(Section):
    """By how much the scores of a challenger may be lower: its weighted accuracy, and the F1 of its tracer."""

    test: float = Field(gt=0, le=1, description="on all of test, shown with 97.5 % confidence")
    slice: Share = Field(description="on each slice of the test side, as observed")
    external: Share = Field(description="on each external test set, as observed")
    tracer: Share = Field(default=0.05, description="F1 of crack lines on drawn cracks, as observed")


class Budgets(Section):
    """Limits on the resources that serving a model takes."""

    p95_ms: float = Field(gt=0, description="95th percentile of the time for one image")
    resident_mb: float = Field(gt=0, description="memory of a process that serves it")
    size_mb: float = Field(gt=0, description="size of its files")


# If two models agree on all n groups of a test set, they differ, with 97.5 % confidence, on less than 3.69 / n of all
# groups: 0.025 ** (1 / n) is 1 - 3.69 / n.
MIN_MARGIN_TIMES_GROUPS = 3.69


class Promote(Section):
    """The rules that a model must pass before it goes to production."""

    approval: Literal["automatic", "manual"] = Field(description="manual: a person approves with `cracks approve`")
    floors: dict[Literal["f1", "recall", "precision", "auroc", "balanced_accuracy"], Share] = Field(
        description="minimum scores on test"
    )
    max_ece: Share = Field(description="maximum expected calibration error on test")
    min_slice_recall: Share = Field(description="minimum recall on each slice of the test side")
    min_source_auroc: Share = Field(
        default=0.7, description="minimum AUROC on each source that it was not trained on, so far as one was measured"
    )
    min_groups: int = Field(ge=1, description="of test images that neither model was trained or validated on")
    margins: Margins
    budgets: Budgets

    @model_validator(mode="after")
    def _check_min_groups(self) -> "Promote":
        needed = math.ceil(MIN_MARGIN_TIMES_GROUPS / self.margins.test)
        if self.min_groups < needed:
            raise ValueError(
                f"min_groups is {self.min_groups}, a margin of {self.margins.test:g} needs {needed}: even if two "
                "models agree on fewer groups, they may differ by more than the margin"
            )
        return self


class Flow(Section):
    """When the flows run, and how they run DVC's stages."""

    timezone: Timezone = Field(default="UTC", description="of monitor.cron and retrain.cron, such as Europe/Berlin")
    max_parallel_stages: int = Field(ge=1, description="stages that run at the same time")
    stage_timeout_minutes: float = Field(gt=0, description="a stage that runs longer is stopped")
    max_retries: int = Field(
        ge=0, description="if a service is unavailable or another DVC process has locked the files"
    )
    retry_pause_s: float = Field(gt=0, description="before the first retry; doubled each time")


class Retention(Section):
    """How long unused data is kept; `make gc` lists and deletes what is older."""

    dvc_cache_days: int = Field(ge=1, description="data of old commits; workspace, branches and tags are kept")
    refused_models_days: int = Field(ge=1, description="files of models that the gate refused; their scores are kept")
    flow_runs_days: int = Field(ge=1, description="finished runs in Prefect")


# Upper limit in mm of a width class, and the surroundings for which it is the guide value of ACI 224R-01, table 4.1
# (reasonable crack widths of reinforced concrete under service loads).
ACI_WIDTH_CLASSES = (
    (0.10, "water-retaining structures"),
    (0.15, "seawater and its spray"),
    (0.18, "de-icing chemicals"),
    (0.30, "humid air or soil"),
    (0.41, "dry air"),
)


class Map(Section):
    """How photos are cut into tiles, and how the widths of cracks are classed."""

    tile_px: int = Field(ge=32, le=2048, description="side of a tile; about the size of the training images")
    overlap: float = Field(ge=0, le=0.9, description="share of a tile that its neighbour covers too")
    model_mm_per_px: float | None = Field(gt=0, description="ground resolution of the training images; null: unknown")
    width_classes: tuple[tuple[PositiveFloat, str], ...] = Field(
        default=ACI_WIDTH_CLASSES, min_length=1, description="upper limit of each class in mm, and what it stands for"
    )

    @field_validator("width_classes")
    @classmethod
    def _check_order(cls, classes: tuple[tuple[float, str], ...]) -> tuple[tuple[float, str], ...]:
        limits = [limit for limit, _ in classes]
        if limits != sorted(set(limits)):
            raise ValueError(f"its limits are {limits}; each must be larger than the one before")
        return classes


class Retrain(Section):
    """When new labelled batches are taken and trained on, and which data set they join."""

    dataset: Name | None = Field(description="its source is a folder of archives; null: no batches are taken")
    cron: Cron = Field(description="when to look for new batches, such as 0 3 * * *")
    settle_minutes: float = Field(
        ge=0, description="an archive without its marker is complete if unchanged for so long"
    )
    max_age_days: int = Field(ge=1, description="of the model; an older one is reported once")


class Serve(Section):
    """How the API serves the model, and limits of one request and of all requests together."""

    poll_s: float = Field(gt=0, description="longest time a version may still answer after leaving production")
    batch_wait_ms: float = Field(ge=0, le=100, description="that an image waits for others, while the model is busy")
    max_batch_images: int = Field(ge=1)
    max_body_mb: int = Field(ge=1, description="of a request")
    max_files: int = Field(ge=1, description="of a request")
    max_image_megapixels: int = Field(ge=1, description="of an image to predict")
    max_photo_megapixels: int = Field(ge=1, description="of a photo to map")
    max_decoded_megapixels: int = Field(ge=1, description="of all requests together; others wait")
    max_seconds: float = Field(gt=0, description="for a request")
    max_requests: int = Field(ge=1, description="at once; further ones are refused and may be repeated later")
    inbox: Path | None = Field(description="folder for reviews, such as data/inbox; null: reviewers download them")
    kept_images_mb: float | None = Field(gt=0, description="of scored images, beside the prediction log; null: none")

    @model_validator(mode="after")
    def _check_max_decoded(self) -> "Serve":
        needed = self.max_image_megapixels + self.max_photo_megapixels
        if self.max_decoded_megapixels < needed:
            raise ValueError(
                f"max_decoded_megapixels is {self.max_decoded_megapixels}; for an image and a photo of the largest "
                f"size at once it must be at least {needed}"
            )
        return self
