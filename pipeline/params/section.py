"""Base class of the sections of params.yaml, and types of values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Label = Literal["crack", "intact"]
Precision = Literal["f32", "bf16"]
Measure = Literal["brightness", "contrast", "sharpness", "dark_share", "bright_share"]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
