"""What a person tunes: the typed form of params.yaml. Unknown keys are errors; nothing here is changed once read."""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.errors import CracksError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Label = Literal["crack", "intact"]
Precision = Literal["f32", "bf16"]
Measure = Literal["brightness", "contrast", "sharpness", "dark_share", "bright_share"]
Share = Annotated[float, Field(ge=0, le=1)]
Setting = TypeVar("Setting")


class Section(BaseModel):
    """Base of every section: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Dataset(Section):
    """Where a data set's images are and how their names are read."""

    source: Path = Field(description="folder, .zip, .tar(.gz|.xz|.bz2), or a .yaml recipe of drawn images")
    labels: dict[str, Label] | None = Field(default=None, description="folder name -> label; null: the usual names")
    photo_pattern: str | None = Field(
        default=None, description="regular expression over the path; its first group names the photo a tile is from"
    )

    @property
    def is_drawn(self) -> bool:
        """Whether the images are drawn from a recipe instead of photographed."""
        return self.source.suffix == ".yaml"


class Limits(Section):
    """What a source may hold; one that holds more is refused whole."""

    max_files: int = Field(ge=1)
    max_total_mb: int = Field(ge=1, description="of all files, unpacked")
    max_file_mb: int = Field(ge=1, description="a larger file goes to quarantine")
    max_expansion: int = Field(ge=1, description="of a file in an archive, over its packed size")
    max_image_megapixels: int = Field(ge=1, description="a larger image goes to quarantine")


class Contract(Section):
    """Limits of the data contract, the same for every data set."""

    min_images_per_label: int = Field(ge=1)
    min_decodable_share: Share = Field(description="of all files found")
    min_minority_share: Share = Field(description="share of the rarer label")
    min_size_px: int = Field(ge=32, description="of the shorter side")
    max_size_px: int = Field(ge=32, description="of the longer side")
    max_copies_share: Share = Field(description="of the images; more is a warning")
    ranges: dict[Measure, tuple[float, float]] = Field(description="lowest and highest value")
    min_share_in_range: Share = Field(description="of the images, for each of `ranges`")


class Copies(Section):
    """When two images count as copies of each other."""

    min_correlation: Share = Field(description="of two fingerprints, best of the eight symmetries of the square")


class Fractions(Section):
    """Shares of the groups on each side."""

    train: Share
    validation: Share
    test: Share

    @model_validator(mode="after")
    def _sum_to_one(self) -> "Fractions":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, they are {total:g}")
        return self


class Split(Section):
    """Who is trained on, and how groups are dealt to the three sides."""

    train_on: tuple[Name, ...] = Field(min_length=1, description="the other data sets are outside sets")
    fractions: Fractions
    seed: int
    copies: Copies
    photos: dict[Literal["train", "validation", "test"], tuple[str, ...]] = Field(
        default={}, description="photos given to a side, as DATASET/PHOTO; an outside set can lend to validation alone"
    )

    @property
    def photo_sides(self) -> dict[str, str]:
        """DATASET/PHOTO -> the side that it is given to."""
        return {photo: side for side, photos in self.photos.items() for photo in photos}

    @model_validator(mode="after")
    def _photos_may_go_there(self) -> "Split":
        for photo, side in self.photo_sides.items():
            if photo.split("/")[0] not in self.train_on and side != "validation":
                raise ValueError(f"photos.{side} names {photo!r} of an outside set, which can lend to validation alone")
        return self


class Backbone(Section):
    """A network pre-trained on ImageNet and the size at which it sees images."""

    architecture: str
    image_size_px: int = Field(ge=32, le=1024)
    taps: tuple[str, ...] = Field(
        default=(), description="convolutions whose mean and maximum are the features; none: the mean of the last one"
    )
    training_precision: Precision = Field(
        default="f32", description="of what a probe learns from; bf16: on CPUs that have it, half the time"
    )


class Embed(Section):
    """Where the frozen backbones run."""

    dask_address: str | None = Field(description="of a Dask scheduler, such as tcp://host:8786; null: this machine")


class MosaicSet(Section):
    """Training images that are composed of shrunken ones, so that cracks are thin and surrounded."""

    of: tuple[Name, ...] = Field(min_length=1, description="data sets whose training images are shrunk to cells")
    cells_a_side: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(min_length=1)
    n_images: int = Field(ge=12, description="for each of `cells_a_side`")


class Probe(Section):
    """Logistic regression on cached features of the frozen backbone."""

    recipe: Literal["probe"]
    backbone: Name
    n_components: int = Field(ge=1, description="principal components of the features that it sees")
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1, description="of the L2 penalty per image; grouped cross-validation chooses one"
    )
    turn: tuple[Name, ...] = Field(
        default=(), description="data sets whose training images are seen in all eight orientations"
    )
    mosaics: MosaicSet | None = None
    traced: MosaicSet | None = Field(
        default=None,
        description="mosaics of sound cells, across which cracks are drawn; a head of its own learns these",
    )
    seed: int


class Phase(Section):
    """One phase of fine-tuning."""

    optimizer: Literal["adam", "rmsprop"]
    learning_rate: float = Field(gt=0)
    max_epochs: int = Field(ge=1)
    patience_epochs: int | None = Field(ge=1, description="null: all epochs, and the last weights")


class Augmentation(Section):
    """What training images are put through, at random, each time they are seen."""

    flips: Literal["horizontal", "vertical", "horizontal_and_vertical"]
    max_rotation_turns: float = Field(ge=0, le=0.5)


class Finetune(Section):
    """First the head on the frozen backbone, then the upper blocks too."""

    recipe: Literal["finetune"]
    backbone: Name
    batch_size: int = Field(ge=1)
    dropout: Share
    augmentation: Augmentation
    head: Phase
    tuning: Phase
    unfreeze_from: str = Field(description="first layer of the backbone that the second phase trains")
    kept_views: int | None = Field(
        ge=1,
        description="augmented versions of an image that go through the frozen layers once, and are kept on disk; "
        "null: augmented anew each epoch, all layers computed each time",
    )
    seed: int


Candidate = Annotated[Probe | Finetune, Field(discriminator="recipe")]


class Select(Section):
    """How candidates are compared on validation."""

    outside_weight: Share = Field(description="of photos lent by outside sets, against the data sets trained on")


class Decide(Section):
    """What mistakes cost, from which threshold and review band follow on validation."""

    missed_crack_cost: float = Field(gt=0, description="relative to the cost of a false alarm")
    false_alarm_cost: float = Field(gt=0)
    review_share_of_cracks: Share = Field(description="of validation cracks that may be called intact for sure")
    review_share_of_intact: Share = Field(description="of intact validation images that may be called crack for sure")


class Register(Section):
    """Name under which the best model is registered in MLflow."""

    name: Name


class Monitor(Section):
    """What is kept of what production sees, and when that counts as drift."""

    log_max_mb: float = Field(gt=0, description="of the prediction log; its oldest files go above it")
    reference_images: int = Field(ge=100, description="of each data set trained on, to compare with")
    statistics: tuple[Measure | Literal["embedding"], ...] = Field(min_length=1, description="what is compared")
    cron: str = Field(description="when to look at what production saw, such as 0 6 * * *")
    window_photos: int = Field(ge=2, description="photos that an alarm needs at least")
    windows_per_month: float = Field(gt=0, description="a window is closed no more often")
    false_alarms_per_month: float = Field(gt=0, description="over all windows and all statistics")
    worth_labelling: int = Field(ge=1, description="images to export for labelling when there is drift")


class Margins(Section):
    """By how much weighted accuracy a challenger may be worse."""

    test: float = Field(gt=0, le=1, description="as a whole, which must be shown with 97.5 % confidence")
    slice: Share = Field(description="on each slice of the test side, as observed")
    outside: Share = Field(description="on each outside set, as observed")


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


class Params(Section):
    """All of params.yaml."""

    datasets: dict[Name, Dataset] = Field(min_length=1)
    ingest: Limits
    contract: Contract
    split: Split
    embed: Embed
    backbones: dict[Name, Backbone] = Field(min_length=1)
    candidates: dict[Name, Candidate] = Field(min_length=1)
    select: Select
    decide: Decide
    register_as: Register = Field(alias="register")
    monitor: Monitor
    promote: Promote
    flow: Flow
    retention: Retention
    map: Map
    retrain: Retrain
    serve: Serve

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        for name in self.split.train_on:
            if name not in self.datasets:
                raise ValueError(f"split.train_on names {name!r}, datasets has {sorted(self.datasets)}")
        for name, candidate in self.candidates.items():
            if candidate.backbone not in self.backbones:
                raise ValueError(
                    f"candidates.{name}.backbone is {candidate.backbone!r}, backbones has {sorted(self.backbones)}"
                )
            if isinstance(candidate, Probe):
                self._are_trained_on(f"candidates.{name}.turn", candidate.turn)
                for kind, wanted in (("mosaics", candidate.mosaics), ("traced", candidate.traced)):
                    self._are_trained_on(f"candidates.{name}.{kind}.of", wanted.of if wanted else ())
        return self

    def _are_trained_on(self, place: str, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.split.train_on:
                raise ValueError(f"{place} names {name!r}, split.train_on has {sorted(self.split.train_on)}")

    @model_validator(mode="after")
    def _batches_can_join(self) -> "Params":
        name = self.retrain.dataset
        if name is None:
            return self
        if name not in self.datasets:
            raise ValueError(f"retrain.dataset is {name!r}, datasets has {sorted(self.datasets)}")
        source = self.datasets[name].source
        if source.suffix:
            raise ValueError(
                f"retrain.dataset is {name!r}, whose source {source} is a file. Batches join a folder of archives: put "
                "the file into one, as 0000-first.zip, and name the folder as the source"
            )
        return self

    @property
    def is_demo(self) -> bool:
        """Whether the model is trained on drawn images, so that its numbers say nothing about concrete."""
        return any(self.datasets[name].is_drawn for name in self.split.train_on)


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        CracksError: the file is missing, is not YAML, or has an unknown, missing or impossible parameter.

    """
    try:
        return Params.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CracksError(f"There is no {path}. Restore it with git, or copy one of examples/.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CracksError(f"{path} cannot be read as YAML: {error}. Mend it, or copy one of examples/.") from None
    except ValidationError as error:
        raise CracksError(_explain(path, error)) from None


def named(settings: Mapping[str, Setting], name: str, kind: str) -> Setting:
    """Return the data set, backbone or candidate (the `kind`) of this name. Raises CracksError where there is none."""
    if name not in settings:
        raise CracksError(f"There is no {kind} {name!r} in params.yaml. Known are {', '.join(settings)}.")
    return settings[name]


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        # pydantic puts the recipe's name into the location of a candidate; params.yaml has no such level
        parts = [str(part) for part in problem["loc"]]
        if parts[:1] == ["candidates"]:
            del parts[2:3]
        line = f"{'.'.join(parts) or 'the file'}: {problem['msg']}"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(parts[-1], _known_keys(), n=1)
            line = f"{'.'.join(parts)}: unknown parameter" + (f", did you mean {near[0]}?" if near else "")
        elif not isinstance(problem["input"], dict):
            line += f" (received {problem['input']!r})"
        lines.append(line)
    return f"{path} cannot be used:\n  " + "\n  ".join(lines) + "\nMend it, or copy one of examples/."


def _known_keys() -> set[str]:
    sections: list[type[BaseModel]] = [Params, *Section.__subclasses__()]
    return {field.alias or name for section in sections for name, field in section.model_fields.items()}
