"""Facts for the model card: the data and the pre-trained weights that a model was made of, and their licences."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.data.images import read_quarantine
from pipeline.params import Dataset, Params

SIDES = ("train", "validation", "test", "external", "excluded")
WEIGHTS = {  # by the prefix of the architecture's name
    "efficientnet-lite": "EfficientNet-Lite, pre-trained on ImageNet, Apache-2.0",
    "mobilenet-v2": "MobileNetV2, pre-trained on ImageNet, MIT",
}


@dataclass(frozen=True)
class DatasetFacts:
    """The facts about a data set in the report."""

    name: str  # in params.yaml
    is_trained_on: bool  # if not, it is an external test set
    source: str  # citation and licence, if they are known
    sides: Mapping[str, int]  # number of images on each side of the split
    n_crack: int
    n_groups: int
    n_quarantined: int  # files that could not be used

    @property
    def n(self) -> int:
        """Number of images."""
        return sum(self.sides.values())


def source_of(dataset: Dataset) -> str:
    """Return the citation and the licence of a data set, or a hint if neither is given in params.yaml."""
    known = [text for text in (dataset.citation, dataset.licence) if text]
    return ", ".join(known) or "your own data: note its origin, owner and licence before you pass the model on"


def weights_of(architecture: str) -> str:
    """Return the name and the licence of the pre-trained weights of `architecture`."""
    known = [text for start, text in WEIGHTS.items() if architecture.startswith(start)]
    return known[0] if known else f"{architecture}: look up the licence of its weights"


def dataset_facts(params: Params, manifest: pd.DataFrame, datasets: Path) -> Iterator[DatasetFacts]:
    """Yield the facts of each data set in `params`, those trained on first."""
    for name in sorted(params.datasets, key=lambda name: name not in params.split.train_on):
        rows = manifest[manifest["dataset"] == name]
        yield DatasetFacts(
            name=name,
            is_trained_on=name in params.split.train_on,
            source=source_of(params.datasets[name]),
            sides={side: int((rows["split"] == side).sum()) for side in SIDES},
            n_crack=int((rows["label"] == "crack").sum()),
            n_groups=rows["group"].nunique(),
            n_quarantined=len(read_quarantine(datasets / name)),
        )
