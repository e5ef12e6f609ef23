"""Base class of the sections of params.yaml, and types of values."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from croniter import croniter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", value):
        raise ValueError(
            "a name has only the letters a to z, digits, - and _, begins with a letter or digit, and has "
            "64 characters at most"
        )
    return value


def _check_cron(value: str) -> str:
    try:
        if "r" in value.casefold().split():
            raise ValueError("random times are not supported")  # by Prefect; croniter would choose one
        croniter(value, datetime.now(UTC)).get_next()  # fails too where no date can match, such as 31 February
    except ValueError as error:
        raise ValueError(f"no cron expression such as 0 3 * * * (minute, hour, day, month, weekday): {error}") from None
    return value


def _check_timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # the name of no file there, of none at all, or of a folder
        raise ValueError("no time zone of the IANA database, such as UTC or Europe/Berlin") from None
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Label = Literal["crack", "intact"]
Precision = Literal["f32", "bf16"]
Measure = Literal["brightness", "contrast", "sharpness", "dark_share", "bright_share"]
Cron = Annotated[str, AfterValidator(_check_cron)]
Timezone = Annotated[str, AfterValidator(_check_timezone)]
Share = Annotated[float, Field(ge=0, le=1)]
CONTENT_ID_LENGTH = 16
# The first digits of the sha256 of an image's bytes, by which validation pages name it.
ContentId = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{CONTENT_ID_LENGTH}}}$")]


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
