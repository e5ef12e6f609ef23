"""What the model card must say of the data and the weights that a model was really made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.data.images import INVENTORY_FILE, read_quarantine
from pipeline.params import Params

SIDES = ("train", "validation", "test", "external", "excluded")
MIN_MATCHING_SHARE = 0.99  # of the images that must look like those of a published data set


@dataclass(frozen=True)
class Published:
    """A published data set, and how its images are told: side in pixels and a pattern of the whole path."""

    citation: str
    side_px: int
    path_pattern: str


PUBLISHED = (
    Published(
        "Concrete Crack Images for Classification, Ç. F. Özgenel, Mendeley Data v2, doi 10.17632/5y9wdsg2zt.2, "
        "CC BY 4.0",
        227,
        r"(.*/)?(Positive|Negative)/\d{5}(_\d)?\.jpg",
    ),
    Published(
        "SDNET2018, M. Maguire, S. Dorafshan, R. J. Thomas, Utah State University 2018, doi 10.15142/T3TD19, CC BY 4.0",
        256,
        r"(.*/)?(Decks|Pavements|Walls|[DPW])/(C|U|CD|UD|CP|UP|CW|UW|Cracked|Non-cracked)/\d{3,4}-\d{1,3}\.jpg",
    ),
)
WEIGHTS = {  # by the beginning of the architecture's name
    "efficientnet-lite": "EfficientNet-Lite, pre-trained on ImageNet, Apache-2.0",
    "mobilenet-v2": "MobileNetV2, pre-trained on ImageNet, MIT",
}


@dataclass(frozen=True)
class DatasetFacts:
    """What the report tells of a data set.

    Attributes:
        name: in params.yaml.
        is_trained_on: if not, it is an external test set.
        source: where it is from and its licence, as far as that can be told.
        sides: images on each side of the split, by its name.
        n_crack, n_groups, n_quarantined: of its images, what they form, and files that could not be used.

    """

    name: str
    is_trained_on: bool
    source: str
    sides: Mapping[str, int]
    n_crack: int
    n_groups: int
    n_quarantined: int

    @property
    def n(self) -> int:
        """Images of the data set."""
        return sum(self.sides.values())


def source_of(inventory: pd.DataFrame, *, is_drawn: bool) -> str:
    """Return the citation of the published data set that these images are, or that it is not known.

    Args:
        inventory: columns path, height and width (pixels), a row an image.
        is_drawn: whether the images are drawn.
    """
    if is_drawn:
        return "drawn by the demo's recipe, not photographed"
    for known in PUBLISHED:
        fits = inventory["path"].str.fullmatch(known.path_pattern)
        fits &= (inventory[["height", "width"]] == known.side_px).all(axis=1)
        if fits.mean() >= MIN_MATCHING_SHARE:
            return known.citation
    return "your own data: note its origin, owner and licence before you pass the model on"


def weights_of(architecture: str) -> str:
    """Return what the weights are that training began with, and their licence."""
    known = [text for start, text in WEIGHTS.items() if architecture.startswith(start)]
    return known[0] if known else f"{architecture}: look up the licence of its weights"


def dataset_facts(params: Params, manifest: pd.DataFrame, datasets: Path) -> Iterator[DatasetFacts]:
    """Yield the facts of each data set in `params`, those trained on first."""
    for name in sorted(params.datasets, key=lambda name: name not in params.split.train_on):
        rows = manifest[manifest["dataset"] == name]
        inventory = pd.read_parquet(datasets / name / INVENTORY_FILE, columns=["path", "height", "width"])
        yield DatasetFacts(
            name=name,
            is_trained_on=name in params.split.train_on,
            source=source_of(inventory, is_drawn=params.datasets[name].is_drawn),
            sides={side: int((rows["split"] == side).sum()) for side in SIDES},
            n_crack=int((rows["label"] == "crack").sum()),
            n_groups=rows["group"].nunique(),
            n_quarantined=len(read_quarantine(datasets / name)),
        )
