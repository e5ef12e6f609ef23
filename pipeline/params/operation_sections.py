"""The sections of params.yaml about operation: registry, promotion, flows, monitoring, retraining, maps and the API."""

import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.params.section import Measure, Name, Section, Share


class Register(Section):
    """Name under which the best model is registered in MLflow."""

    name: Name


class Monitor(Section):
    """What is kept of what production sees, and when that counts as drift."""

    log_max_mb: float = Field(gt=0, description="of the prediction log; its oldest files go above it")
    n_reference_images: int = Field(ge=100, description="of each data set trained on, to compare with")
    statistics: tuple[Measure | Literal["embedding"], ...] = Field(min_length=1, description="what is compared")
    cron: str = Field(description="when to look at what production saw, such as 0 6 * * *")
    window_photos: int = Field(ge=2, description="photos that an alarm needs at least")
    windows_per_month: float = Field(gt=0, description="a window is closed no more often")
    false_alarms_per_month: float = Field(gt=0, description="over all windows and all statistics")
    n_to_label: int = Field(ge=1, description="images to export for labelling when there is drift")


class Margins(Section):
    """By how much weighted accuracy a challenger may be worse."""

    test: float = Field(gt=0, le=1, description="as a whole, which must be shown with 97.5 % confidence")
    slice: Share = Field(description="on each slice of the test side, as observed")
    external: Share = Field(description="on each external test set, as observed")


class Budgets(Section):
    """What serving a model may take."""

    p95_ms: float = Field(gt=0, description="95th percentile of the time for one image")
    resident_mb: float = Field(gt=0, description="memory of a process that serves it")
    size_mb: float = Field(gt=0, description="of its files")


# A test set on which two models agree throughout says with 97.5 % confidence no more than that they differ on less than
# 3.69 / n of all groups: 0.025 ** (1 / n) is 1 - 3.69 / n.
MIN_MARGIN_TIMES_GROUPS = 3.69


class Promote(Section):
    """What a model must show before it goes to production."""

    approval: Literal["automatic", "manual"] = Field(description="manual: a person says yes, with `cracks approve`")
    floors: dict[Literal["f1", "recall", "precision", "auroc", "balanced_accuracy"], Share] = Field(
        description="lowest scores on test"
    )
    max_ece: Share = Field(description="largest calibration error on test")
    min_slice_recall: Share = Field(description="share of the cracks that is found, on each slice of the test side")
    min_groups: int = Field(ge=1, description="of test images from which neither model has learned")
    margins: Margins
    budgets: Budgets

    @model_validator(mode="after")
    def _margin_can_be_shown(self) -> "Promote":
        needed = math.ceil(MIN_MARGIN_TIMES_GROUPS / self.margins.test)
        if self.min_groups < needed:
            raise ValueError(
                f"min_groups is {self.min_groups}, a margin of {self.margins.test:g} needs {needed}: two models that "
                "agree on fewer may still differ by more"
            )
        return self


class Flow(Section):
    """How the flows run DVC's stages."""

    max_parallel_stages: int = Field(ge=1, description="of those that do not wait for each other")
    stage_timeout_minutes: float = Field(gt=0, description="a stage that runs longer hangs, and is ended")
    max_retries: int = Field(ge=0, description="of a stage whose service is away or whose files DVC has in hand")
    retry_pause_s: float = Field(gt=0, description="before the first retry; doubled each time")


class Retention(Section):
    """How long what nobody uses any more is kept; `make gc` shows and deletes it."""

    dvc_cache_days: int = Field(ge=1, description="data of commits; that of the workspace, branches and tags stays")
    refused_models_days: int = Field(ge=1, description="files of models that the gate refused; their scores stay")
    flow_runs_days: int = Field(ge=1, description="runs in Prefect that have ended")


class Map(Section):
    """How whole photos are cut into tiles."""

    tile_px: int = Field(ge=32, le=2048, description="side of a tile; about the size of the images trained on")
    overlap: float = Field(ge=0, le=0.9, description="share of a tile that its neighbour covers again")
    model_mm_per_px: float | None = Field(gt=0, description="ground resolution of the images trained on; null: unknown")


class Retrain(Section):
    """When new labelled batches are taken and trained on, and which data set they join."""

    dataset: Name | None = Field(description="its source is a folder of archives; null: the inbox is closed")
    cron: str = Field(description="when to look for new batches, such as 0 3 * * *")
    settle_minutes: float = Field(ge=0, description="an archive without a done marker is whole when unchanged so long")
    max_age_days: int = Field(ge=1, description="of the model; an older one is told of once")


class Serve(Section):
    """How the API holds the model, and what it takes from one request and from all at once."""

    poll_s: float = Field(
        gt=0, description="no answer is of a version that left production earlier than this before it"
    )
    batch_wait_ms: float = Field(ge=0, le=100, description="that an image waits for others, while the network is busy")
    max_batch_images: int = Field(ge=1)
    max_body_mb: int = Field(ge=1, description="of a request")
    max_files: int = Field(ge=1, description="of a request")
    max_image_megapixels: int = Field(ge=1, description="of an image to predict")
    max_photo_megapixels: int = Field(ge=1, description="of a photo to map")
    max_decoded_megapixels: int = Field(ge=1, description="decoded at once, for all requests; others wait")
    max_seconds: float = Field(gt=0, description="for a request")
    max_requests: int = Field(ge=1, description="at once; one more is asked to come again")
    inbox: Path | None = Field(description="of the retraining flow, for reviews; null: the reviewer downloads them")
    kept_images_mb: float | None = Field(
        gt=0, description="of the images that were scored, kept beside the prediction log; null: none is kept"
    )

    @model_validator(mode="after")
    def _one_fits(self) -> "Serve":
        largest = max(self.max_image_megapixels, self.max_photo_megapixels)
        if self.max_decoded_megapixels < largest:
            raise ValueError(f"max_decoded_megapixels is {self.max_decoded_megapixels}, one image may have {largest}")
        return self
