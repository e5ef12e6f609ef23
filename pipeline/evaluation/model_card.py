"""Facts for the model card: the data and the pre-trained weights that a model was made of, and their licences."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.data.images import INVENTORY_FILE, read_quarantine
from pipeline.params import Params

SIDES = ("train", "validation", "test", "external", "excluded")
MIN_MATCHING_SHARE = 0.99  # of the images, to recognise a published data set


@dataclass(frozen=True)
class Published:
    """A published data set, recognised by the side of its images in pixels and a pattern that matches the full path."""

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
WEIGHTS = {  # by the prefix of the architecture's name
    "efficientnet-lite": "EfficientNet-Lite, pre-trained on ImageNet, Apache-2.0",
    "mobilenet-v2": "MobileNetV2, pre-trained on ImageNet, MIT",
}


@dataclass(frozen=True)
class DatasetFacts:
    """The facts about a data set in the report.

    Attributes:
        name: name in params.yaml.
        is_trained_on: whether it is trained on; if not, it is an external test set.
        source: origin and licence, if they are known.
        sides: number of images on each side of the split.
        n_crack: number of cracked images.
        n_groups: number of groups.
        n_quarantined: number of files that could not be used.

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
        """Number of images."""
        return sum(self.sides.values())


def source_of(inventory: pd.DataFrame, *, is_drawn: bool) -> str:
    """Return the citation of the published data set that these images come from, or a text if it is unknown.

    Args:
        inventory: one row per image, with columns path, height and width (pixels).
        is_drawn: whether the images were drawn by the demo.
    """
    if is_drawn:
        return "drawn by the demo, not photographed"
    for published in PUBLISHED:
        matches = inventory["path"].str.fullmatch(published.path_pattern)
        matches &= (inventory[["height", "width"]] == published.side_px).all(axis=1)
        if matches.mean() >= MIN_MATCHING_SHARE:
            return published.citation
    return "your own data: note its origin, owner and licence before you pass the model on"


def weights_of(architecture: str) -> str:
    """Return the name and the licence of the pre-trained weights of `architecture`."""
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
