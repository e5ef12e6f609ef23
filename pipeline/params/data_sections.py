"""The sections of params.yaml about data: data sets, limits of reading, the data contract and the split."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.params.section import Label, Measure, Name, Section, Share


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

    train_on: tuple[Name, ...] = Field(min_length=1, description="the other data sets are external test sets")
    fractions: Fractions
    seed: int
    copies: Copies
    photos: dict[Literal["train", "validation", "test"], tuple[str, ...]] = Field(
        default={},
        description="photos given to a side, as DATASET/PHOTO; an external test set can lend to validation alone",
    )

    @property
    def photo_sides(self) -> dict[str, str]:
        """DATASET/PHOTO -> the side that it is given to."""
        return {photo: side for side, photos in self.photos.items() for photo in photos}

    @model_validator(mode="after")
    def _photos_may_go_there(self) -> "Split":
        for photo, side in self.photo_sides.items():
            if photo.split("/")[0] not in self.train_on and side != "validation":
                raise ValueError(
                    f"photos.{side} names {photo!r} of an external test set, which can lend to validation alone"
                )
        return self
