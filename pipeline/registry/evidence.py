"""What the gate looks at. What could not be found out is `Unknown`, and a figure may be None or NaN."""

from collections.abc import Mapping
from dataclasses import dataclass

Figure = float | None


@dataclass(frozen=True)
class Unknown:
    """What could not be found out, and why."""

    reason: str


@dataclass(frozen=True)
class OwnScores:
    """A model alone, on today's test images that it has not learned from.

    Attributes:
        n_images, n_groups: what it was scored on.
        n_groups_left_out: groups of the test side from which it has learned.
        scores: by name (f1, recall, auroc, ece, ...), 0..1.
        slice_recalls: recall by slice, of the slices with enough cracks.
    """

    n_images: int
    n_groups: int
    n_groups_left_out: int
    scores: Mapping[str, Figure]
    slice_recalls: Mapping[str, Figure]


@dataclass(frozen=True)
class Change:
    """The weighted accuracies, 0..1, of challenger and incumbent on the same images."""

    n_images: int
    challenger: Figure
    incumbent: Figure


@dataclass(frozen=True)
class Comparison:
    """The challenger against a model that is or was in production, both scored afresh on the same images.

    Attributes:
        version: of the incumbent.
        n_images, n_groups: of the test side, without those that either has learned from.
        n_groups_left_out: groups that were left out for that.
        test: both weighted accuracies there.
        low: lower end of the one-sided 97.5 % interval of challenger less incumbent.
        confidence: 0..1, with which the challenger is the better one.
        slices, external: both weighted accuracies on parts of the test side, and on whole external test sets.
    """

    version: str
    n_images: int
    n_groups: int
    n_groups_left_out: int
    test: Change
    low: Figure
    confidence: Figure
    slices: Mapping[str, Change]
    external: Mapping[str, Change]


@dataclass(frozen=True)
class Operations:
    """The registered model as it is served, measured in a fresh process.

    Attributes:
        golden_difference: largest difference to the probabilities that it gave golden images at training.
        p95_ms: 95th percentile of the time for one decoded image.
        resident_mb: memory of the process once it has answered.
        size_mb: of the files that serving loads.
    """

    golden_difference: Figure
    p95_ms: Figure
    resident_mb: Figure
    size_mb: Figure


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    Attributes:
        data_hashes: by path, of the data that it was trained on.
        contract: "passed" if each of its data sets kept the data contract.
        commit: of the code, or "unknown".
        is_dirty: whether the code differed from the commit; None where that is not known.
        dirty_is_allowed: whether a person takes that upon them.
        is_demo: whether it was trained on drawn images; None where that is not known.
        replaces_real: whether a model of real concrete is in production; None where that is not known.
        was_rolled_back: whether production was taken back from this very model.
    """

    data_hashes: Mapping[str, str]
    contract: str
    commit: str
    is_dirty: bool | None
    dirty_is_allowed: bool
    is_demo: bool | None
    replaces_real: bool | None
    was_rolled_back: bool


@dataclass(frozen=True)
class Evidence:
    """All that the gate looks at. `comparisons` has "production" and "best"; it is empty for the first model."""

    own: OwnScores | Unknown
    comparisons: Mapping[str, Comparison | Unknown]
    operations: Operations | Unknown
    lineage: Lineage | Unknown
