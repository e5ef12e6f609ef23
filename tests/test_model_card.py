from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from pipeline.data.images import QUARANTINE_FILE
from pipeline.evaluation.report_page import dataset_facts, source_of, weights_of
from pipeline.params import Dataset, load_params

ROOT = Path(__file__).parent.parent


def dataset(**given):
    return Dataset(source="walls.zip", **given)


def test_a_data_set_is_shown_with_its_citation_and_licence():
    assert source_of(dataset(citation="Walls, A. Person 2020", licence="CC0")) == "Walls, A. Person 2020, CC0"
    assert source_of(dataset(licence="CC0")) == "CC0"


def test_a_data_set_without_citation_and_licence_has_a_hint():
    assert source_of(dataset()).startswith("your own data: note its origin, owner and licence")


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *(ROOT / "examples").glob("*.yaml")], ids=lambda path: path.name
)
def test_every_shipped_data_set_has_a_citation_and_a_licence(path):
    datasets = load_params(path).datasets
    assert all(one.citation and one.licence for one in datasets.values())
    dois = {"metu": "10.17632/5y9wdsg2zt.2", "sdnet": "10.15142/T3TD19", "demo": "not photographed"}
    assert all(dois[name] in source_of(one) for name, one in datasets.items())


def test_known_weights_have_their_licence_and_unknown_ones_a_hint():
    assert weights_of("efficientnet-lite0").endswith("Apache-2.0")
    assert weights_of("mobilenet-v2").endswith("MIT")
    assert weights_of("other-net") == "other-net: look up the licence of its weights"


def test_the_facts_of_each_data_set_are_counted_from_the_manifest(tmp_path):
    params = SimpleNamespace(
        datasets={name: dataset() for name in ("far", "ours")},
        split=SimpleNamespace(train_on=("ours",)),
    )
    manifest = pd.DataFrame(
        {
            "dataset": ["ours"] * 4 + ["far"],
            "label": ["crack", "crack", "intact", "intact", "intact"],
            "group": ["a", "a", "b", "c", "d"],
            "split": ["train", "train", "test", "excluded", "external"],
        }
    )
    for name, n_bad in (("ours", 2), ("far", 0)):
        (tmp_path / name).mkdir()
        quarantine = pd.DataFrame(
            {"batch": "", "path": [f"{n}.jpg" for n in range(n_bad)], "reason": "broken", "is_image": False}
        )
        quarantine.to_csv(tmp_path / name / QUARANTINE_FILE, index=False)
    ours, far = dataset_facts(params, manifest, tmp_path)
    assert (ours.name, ours.is_trained_on, far.is_trained_on) == ("ours", True, False)
    assert (ours.n, ours.n_crack, ours.n_groups, ours.n_quarantined) == (4, 2, 3, 2)
    assert ours.sides == {"train": 2, "validation": 0, "test": 1, "external": 0, "excluded": 1}
    assert (far.n, far.n_crack, far.n_quarantined) == (1, 0, 0)
