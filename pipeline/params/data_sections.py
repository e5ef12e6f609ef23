"""The sections of params.yaml about data: data sets, limits of reading, the data contract and the split."""

import unicodedata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.params.section import ContentId, Label, Measure, Name, Section, Share


class Masks(Section):
    """Masks that show where the cracks of images are, and how they label the images, or tiles of them."""

    folders: dict[str, str] = Field(default={}, description="folder of images -> folder of their masks, .png or .mat")
    coco: str | None = Field(default=None, description="name of files of polygons in COCO's format, instead of masks")
    crack: tuple[int | str, ...] = Field(min_length=1, description="values, or names of categories, that mean crack")
    tile_px: int | None = Field(default=None, ge=32, description="side of the tiles to cut; null: whole images")
    min_crack_px: int = Field(ge=1, description="length of a connected crack; an image with less is left out")

    @model_validator(mode="after")
    def _check_kind(self) -> "Masks":
        if bool(self.folders) == bool(self.coco):
            raise ValueError("either folders or coco must say where the masks are, and not both")
        return self


def folder_name(name: str) -> str:
    """Return a folder's name for comparison: composed Unicode, which macOS decomposes, without regard to case."""
    return unicodedata.normalize("NFC", name).casefold()


class Dataset(Section):
    """Where the images of a data set are, and how labels and photos follow from their paths."""

    source: Path = Field(description="folder, .zip, .tar(.gz|.xz|.bz2), .rar, or .yaml that describes drawn images")
    labels: dict[str, Label] | None = Field(
        default=None, description="folder -> label, such as {Risse: crack, Heil: intact}; null: names such as Positive"
    )
    corrected_labels: dict[ContentId, Label] = Field(
        default={}, description="id of an image on the validation page -> its right label, where its folder is wrong"
    )
    photo_pattern: str | None = Field(default=None, description="regex on the path; its first group names the photo")
    citation: str | None = Field(default=None, description="who published it, where; for the report")
    licence: str | None = Field(default=None, description="of the images; for the report")
    masks: Masks | None = Field(default=None, description="that label the images, instead of folders")

    @model_validator(mode="before")
    @classmethod
    def _name_photos_of_tiles(cls, given: Any) -> Any:
        """Give tiles the pattern of their names, photo-Y-X.png, unless there is another."""
        masks = given.get("masks") if isinstance(given, dict) else None
        tile_px = masks.get("tile_px") if isinstance(masks, dict) else getattr(masks, "tile_px", None)
        return {"photo_pattern": r"([^/]+?)(?:-\d+-\d+)?\.\w+$"} | given if tile_px else given

    @model_validator(mode="after")
    def _check_labels(self) -> "Dataset":
        if self.masks and self.labels:
            raise ValueError("masks label the images, so labels must be left out")
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _check_folders(cls, labels: object) -> object:
        known: dict[str, object] = {}
        for folder, label in labels.items() if isinstance(labels, dict) else ():
            if not isinstance(folder, str):
                raise ValueError(
                    f"YAML reads the name of a folder as {folder!r}. Put it in quotes, such as 'Yes': crack, '1': crack"
                )
            if known.setdefault(folder_name(folder), label) != label:
                raise ValueError(f"the folder {folder!r} has two labels; upper and lower case make no difference")
        return labels

    @property
    def is_drawn(self) -> bool:
        """Whether the images are drawn instead of photographed."""
        return self.source.suffix == ".yaml"


class Limits(Section):
    """Limits of a source. A source that exceeds max_files, max_total_mb or max_expansion is refused."""

    max_files: int = Field(ge=1)
    max_total_mb: int = Field(ge=1, description="of all files, unpacked")
    max_file_mb: int = Field(ge=1, description="a larger file goes to quarantine")
    max_expansion: int = Field(ge=1, description="size of an archive unpacked, relative to its own")
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
    """When two images count as near-duplicates."""

    min_correlation: Share = Field(
        description="of two fingerprints, in the best of the eight orientations; from here on pixels are compared"
    )
    not_copies: tuple[tuple[ContentId, ContentId], ...] = Field(
        default=(), description="pairs that a person knows to be different images, by their ids on a validation page"
    )

    @field_validator("not_copies")
    @classmethod
    def _check_pairs(cls, pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for first, second in pairs:
            if first == second:
                raise ValueError(f"{first} is paired with itself; images of the same bytes are always copies")
        return pairs


class Fractions(Section):
    """Share of the images on each side."""

    train: Share
    validation: Share
    test: Share

    @model_validator(mode="after")
    def _check_sum(self) -> "Fractions":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, they are {total:g}")
        return self


class Split(Section):
    """Data sets to train on, and how groups are assigned to train, validation and test."""

    train_on: tuple[Name, ...] = Field(min_length=1, description="the other data sets are external test sets")
    fractions: Fractions
    seed: int
    copies: Copies
    photos: dict[Literal["train", "validation", "test"], tuple[str, ...]] = Field(
        default={},
        description="manual assignments: side -> photos as DATASET/PHOTO; of external test sets, only to validation",
    )

    @property
    def photo_sides(self) -> dict[str, str]:
        """DATASET/PHOTO -> the side that it is assigned to."""
        return {photo: side for side, photos in self.photos.items() for photo in photos}

    @model_validator(mode="after")
    def _check_photo_sides(self) -> "Split":
        for photo, side in self.photo_sides.items():
            if photo.split("/")[0] not in self.train_on and side != "validation":
                raise ValueError(
                    f"photos.{side} names {photo!r} of an external test set, whose photos can only "
                    "be held out for validation"
                )
        return self
