"""Measures how often the promotion gate errs on real predictions, for equally good models and worse challengers.

    cp examples/params.metu.yaml params.yaml     with the archive at data/incoming/metu.zip
    dvc repro split
    python -m benchmarks.gate

Trains small probes on random tenths of the training groups, and poor probes on a few images, and scores the images of
validation and test with all of them. A trial draws groups of these images with replacement as its test set, and two of
the probes:

- equally good: for each group it is random which of the two predictions is the challenger's and which the incumbent's.
  So neither is better, but they disagree as two real models do.
- worse: in addition, the challenger's prediction for random groups is that of a poor probe, as often as needed to lower
  its expected weighted accuracy by twice the margin.

Prints how often each comparison rule refuses, and how often the challenger would be promoted.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from pipeline.data.images import LabelledImages
from pipeline.evaluation.bootstrap import weighted_accuracy
from pipeline.evaluation.slices import with_measures
from pipeline.models.decision import Decision
from pipeline.params import Params, load_params
from pipeline.registry.evidence import Unknown
from pipeline.registry.gate import no_part_degrades, not_worse
from pipeline.registry.score_versions import Scored, TestSet, compare
from pipeline.training.embedder import embedder_of

N_PROBES = 12
N_POOR = 4
N_COMPONENTS = 64
SHARE_OF_TRAINING = 0.1  # of the groups, for a probe
POOR_IMAGES = 12
L2_PENALTY = 0.01  # of the L2 penalty per image
AT_HALF = Decision(0.5, 0.5, 0.5)

Answers = npt.NDArray[np.float32]  # (n,), probability of a crack


@dataclass(frozen=True)
class Population:
    """Images that no probe was trained on, a row each, and the predictions of each probe."""

    rows: pd.DataFrame
    good: list[Answers]
    poor: list[Answers]


def fit(features: npt.NDArray[np.float32], is_crack: npt.NDArray[np.bool_], unseen: npt.NDArray[np.float32]) -> Answers:
    """Return the predictions for `unseen` of a probe trained on `features`; both (n, n_features)."""
    n_components = min(N_COMPONENTS, len(features) - 1)
    probe = make_pipeline(
        StandardScaler(),
        PCA(n_components, random_state=0),
        LogisticRegression(C=1 / (L2_PENALTY * len(features)), max_iter=1000),
    )
    answers: Answers = probe.fit(features, is_crack).predict_proba(unseen)[:, 1].astype(np.float32)
    return answers


def populate(manifest: pd.DataFrame, features: npt.NDArray[np.float32], datasets: Path) -> Population:
    """Return the predictions of newly trained probes; `features` has a row for each row of the manifest."""
    rng = np.random.default_rng(0)
    is_training, unseen = (manifest["split"] == "train").to_numpy(), manifest["split"].isin(("validation", "test"))
    is_crack = (manifest["label"] == "crack").to_numpy()
    groups = manifest["group"].to_numpy()
    names = np.unique(groups[is_training])

    def answers(chosen: npt.NDArray[np.bool_]) -> Answers:
        return fit(features[chosen], is_crack[chosen], features[unseen])

    good = []
    for _ in tqdm(range(N_PROBES), desc="training probes", disable=None):
        some = rng.choice(names, int(SHARE_OF_TRAINING * len(names)), replace=False)
        good.append(answers(is_training & np.isin(groups, some)))
    poor = []
    for _ in range(N_POOR):
        few = np.concatenate(
            [rng.choice(np.flatnonzero(is_training & (is_crack == label)), POOR_IMAGES // 2) for label in (True, False)]
        )
        poor.append(answers(np.isin(np.arange(len(manifest)), few)))
    return Population(with_measures(manifest[unseen].assign(split="test"), datasets).reset_index(drop=True), good, poor)


def accuracy(population: Population, answers: Answers) -> float:
    """Return the weighted accuracy over the population; both labels have the same weight."""
    is_crack = (population.rows["label"] == "crack").to_numpy()
    return weighted_accuracy(is_crack, (answers >= 0.5) == is_crack, 0.5)


@dataclass(frozen=True)
class Trial:
    """A test set, as positions in the population, and the predictions of two models for it."""

    positions: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    challenger: Answers
    incumbent: Answers


def trials(population: Population, n_trials: int, n_groups: int, deficit: float) -> Iterator[Trial]:
    """Yield trials whose challenger has a weighted accuracy that is lower by `deficit` in expectation; 0: equal."""
    rng = np.random.default_rng(1)
    members = list(population.rows.groupby("group", sort=False).indices.values())
    for _ in range(n_trials):
        drawn = rng.integers(len(members), size=n_groups)
        positions = np.concatenate([members[group] for group in drawn])
        groups = np.repeat(np.arange(n_groups), [len(members[group]) for group in drawn])
        one, other = (population.good[choice] for choice in rng.choice(len(population.good), 2, replace=False))
        is_first = rng.random(n_groups)[groups] < 0.5
        challenger = np.where(is_first, one[positions], other[positions])
        incumbent = np.where(is_first, other[positions], one[positions])
        if deficit:
            poor = population.poor[rng.integers(len(population.poor))]
            usual = (accuracy(population, one) + accuracy(population, other)) / 2
            how_often = deficit / (usual - accuracy(population, poor))
            challenger = np.where(rng.random(n_groups)[groups] < how_often, poor[positions], challenger)
        yield Trial(positions, groups, challenger, incumbent)


def judge(population: Population, trial: Trial, params: Params) -> tuple[bool, bool]:
    """Return whether the challenger passes the overall comparison, and the comparison of the parts."""
    rows = population.rows.iloc[trial.positions].assign(group=trial.groups).reset_index(drop=True)
    test_set = TestSet(rows, LabelledImages(rows.head(0), Path()), rows)
    found = compare(
        test_set,
        Scored("2", trial.challenger, AT_HALF, frozenset()),
        Scored("1", trial.incumbent, AT_HALF, frozenset()),
        params.decide,
    )
    if isinstance(found, Unknown):
        raise TypeError(found.reason)
    rules = params.promote
    return not_worse("production", found, rules).passed, no_part_degrades("production", found, rules).passed


def main() -> None:
    """Run the trials and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="trials per row of the table")
    parser.add_argument("--groups", type=int, nargs="+", default=[400, 1400, 4000], help="in a trial's test set")
    args = parser.parse_args()
    params = load_params(Path("params.yaml"))
    (name,) = params.split.train_on
    (backbone,) = params.backbones
    manifest = pd.read_parquet("data/manifest.parquet")
    manifest = manifest[manifest["dataset"] == name].reset_index(drop=True)
    images = LabelledImages(manifest, Path("data/datasets"))
    features = embedder_of(params.backbones[backbone]).features(images)
    population = populate(manifest, features.astype(np.float32), Path("data/datasets"))
    good = [accuracy(population, answers) for answers in population.good]
    poor = [accuracy(population, answers) for answers in population.poor]
    n_groups = population.rows["group"].nunique()
    print(f"{len(population.rows)} images of {n_groups} groups; weighted accuracy of the probes {min(good):.4f} to "
          f"{max(good):.4f}, of the poor ones {min(poor):.4f} to {max(poor):.4f}")  # fmt: skip
    print(f"{'challenger':<28} {'groups':>6} {'promoted':>8} {'refused':>8} {'overall':>10} {'by a part':>10}")
    margin = params.promote.margins.test
    for kind, deficit in (("equally good", 0.0), (f"worse by {2 * margin:g}", 2 * margin)):
        for n_groups in args.groups:
            passed = np.array([judge(population, trial, params)
                               for trial in trials(population, args.pairs, n_groups, deficit)])  # fmt: skip
            promoted = passed.all(axis=1).mean()
            whole, part = 1 - passed.mean(axis=0)
            print(f"{kind:<28} {n_groups:>6} {promoted:>8.1%} {1 - promoted:>8.1%} {whole:>10.1%} {part:>10.1%}")


if __name__ == "__main__":
    main()
