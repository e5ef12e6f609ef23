"""Read and validate params.yaml."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.errors import CracksError
from pipeline.params.data_sections import Contract, Dataset, Limits, Split
from pipeline.params.operation_sections import Flow, Map, Monitor, Promote, Register, Retention, Retrain, Serve
from pipeline.params.section import Name, Section
from pipeline.params.training_sections import (
    Backbone,
    Candidate,
    Decide,
    DrawnCracks,
    Embed,
    Evaluate,
    Probe,
    Select,
)

Setting = TypeVar("Setting")

# Place of a parameter in version 0.1.0 ("*": any name) -> its name now.
RENAMED = {
    ("backbones", "*", "taps"): "feature_layers",
    ("candidates", "*", "kept_views"): "cached_augmentations",
    ("candidates", "*", "recipe"): "kind",
    ("candidates", "*", "strengths"): "l2_penalties",
    ("candidates", "*", "traced"): "hairline_mosaics",
    ("candidates", "*", "turn"): "orientations",
    ("monitor", "reference_images"): "n_reference_images",
    ("monitor", "worth_labelling"): "n_to_label",
    ("promote", "margins", "outside"): "external",
    ("select", "outside_weight"): "external_weight",
}
OUTDATED = {place: f"is now called {name}" for place, name in RENAMED.items()} | dict.fromkeys(
    (("decide", "review_share_of_cracks"), ("decide", "review_share_of_intact")),
    "has been replaced: write decide.review_budget, the share of images that people can review, such as 0.15",
)


class Params(Section):
    """All of params.yaml."""

    datasets: dict[Name, Dataset] = Field(min_length=1)
    ingest: Limits
    contract: Contract
    split: Split
    embed: Embed
    backbones: dict[Name, Backbone] = Field(min_length=1)
    candidates: dict[Name, Candidate] = Field(min_length=1)
    tracer: DrawnCracks | None = Field(default=None, description="null: the tracer that ships with the project")
    select: Select
    evaluate: Evaluate = Evaluate()
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
    def _check_names(self) -> "Params":
        for name in self.split.train_on:
            if name not in self.datasets:
                raise ValueError(f"split.train_on names {name!r}, datasets has {sorted(self.datasets)}")
        for name, candidate in self.candidates.items():
            if candidate.backbone not in self.backbones:
                raise ValueError(
                    f"candidates.{name}.backbone is {candidate.backbone!r}, backbones has {sorted(self.backbones)}"
                )
            if isinstance(candidate, Probe):
                self._check_trained_on(f"candidates.{name}.orientations", candidate.orientations)
                for kind, wanted in (("mosaics", candidate.mosaics), ("hairline_mosaics", candidate.hairline_mosaics)):
                    self._check_trained_on(f"candidates.{name}.{kind}.of", wanted.of if wanted else ())
        return self

    def _check_trained_on(self, place: str, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.split.train_on:
                raise ValueError(f"{place} names {name!r}, split.train_on has {sorted(self.split.train_on)}")

    @model_validator(mode="after")
    def _check_retrain_dataset(self) -> "Params":
        name = self.retrain.dataset
        if name is None:
            return self
        if name not in self.datasets:
            raise ValueError(f"retrain.dataset is {name!r}, datasets has {sorted(self.datasets)}")
        source = self.datasets[name].source
        if source.suffix:
            raise ValueError(
                f"retrain.dataset is {name!r}, whose source {source} is a file. Batches join a folder of archives: "
                "move the file into a folder, as 0000-first.zip, and name the folder as the source"
            )
        return self

    @property
    def is_demo(self) -> bool:
        """Whether the model is trained on drawn images, so that its scores say nothing about real concrete."""
        return any(self.datasets[name].is_drawn for name in self.split.train_on)


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises CracksError if it is missing, is not YAML, or has an unknown, renamed, missing or impossible parameter.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        if outdated := list(_outdated_keys(document)):
            raise CracksError(f"{path} has parameters of an earlier version:\n  " + "\n  ".join(outdated))
        return Params.model_validate(document)
    except FileNotFoundError:
        raise CracksError(f"There is no {path}. Restore it with git, or copy one of examples/.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CracksError(f"{path} cannot be read as YAML: {error}. Correct it, or copy one of examples/.") from None
    except ValidationError as error:
        raise CracksError(_explain(path, error)) from None


def named(settings: Mapping[str, Setting], name: str, kind: str) -> Setting:
    """Return the data set, backbone or candidate (`kind`) of this name. Raises CracksError if there is none."""
    if name not in settings:
        raise CracksError(f"There is no {kind} {name!r} in params.yaml. Known are {', '.join(settings)}.")
    return settings[name]


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        # pydantic adds the kind to the location of a candidate; params.yaml has no such level
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
    return f"{path} cannot be used:\n  " + "\n  ".join(lines) + "\nCorrect it, or copy one of examples/."


def _outdated_keys(values: object, place: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a message for each key in `values`, at `place` of params.yaml, that has been renamed or replaced."""
    for key, value in values.items() if isinstance(values, dict) else ():
        here = (*place, str(key))
        for old, words in OUTDATED.items():
            if len(old) == len(here) and all(part in ("*", name) for part, name in zip(old, here, strict=True)):
                yield f"{'.'.join(here)} {words}"
        yield from _outdated_keys(value, here)


def _known_keys() -> set[str]:
    sections: list[type[BaseModel]] = [Params, *Section.__subclasses__()]
    return {field.alias or name for section in sections for name, field in section.model_fields.items()}
