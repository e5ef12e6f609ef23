"""What the sections of params.yaml have in common: frozen models that forbid unknown keys, and the types of values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Label = Literal["crack", "intact"]
Precision = Literal["f32", "bf16"]
Measure = Literal["brightness", "contrast", "sharpness", "dark_share", "bright_share"]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every section: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
