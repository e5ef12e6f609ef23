"""The evidence on which the gate decides. What could not be determined is `Unknown`; a figure may be None or NaN."""

from collections.abc import Mapping
from dataclasses import dataclass

Figure = float | None


@dataclass(frozen=True)
class Unknown:
    """Evidence that could not be determined, with the reason."""

    reason: str


@dataclass(frozen=True)
class OwnScores:
    """Scores of one model on the current test images that it was not trained on.

    Attributes:
        n_images, n_groups: numbers of images and groups scored.
        scores: by name (f1, recall, auroc, ece, ...), 0..1.
        slice_recalls: recall of each slice with enough cracks.
        external_aurocs: AUROC on each external test set with enough images.
        too_small: names of the other external test sets.
    """

    n_images: int
    n_groups: int
    scores: Mapping[str, Figure]
    slice_recalls: Mapping[str, Figure]
    external_aurocs: Mapping[str, float]
    too_small: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """Scores, 0..1, of challenger and incumbent on the same images."""

    n_images: int
    challenger: Figure
    incumbent: Figure


@dataclass(frozen=True)
class Comparison:
    """The challenger compared with a model that is or was in production; both are scored again on the same images.

    Attributes:
        version: number of the incumbent.
        n_images, n_groups: numbers of test images and groups that neither model was trained on.
        n_groups_left_out: number of test groups that either model was trained on.
        test: weighted accuracies on those test images.
        low: lower end of the one-sided 97.5 % interval of the difference, challenger minus incumbent.
        confidence: confidence, 0..1, that the challenger is better.
        slices, external: weighted accuracies on each slice of the test images and on each external test set.
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
    """Measurements of the served model in a new process.

    Attributes:
        golden_difference: largest difference from the probabilities of the golden images at training.
        p95_ms: 95th percentile of the time to score one decoded image.
        resident_mb: resident memory of the process after scoring.
        size_mb: total size of the files that serving loads.
    """

    golden_difference: Figure
    p95_ms: Figure
    resident_mb: Figure
    size_mb: Figure


@dataclass(frozen=True)
class Lineage:
    """The data and code that a model comes from.

    Attributes:
        data_hashes: hash of the training data by path.
        contract: "passed" if every data set passed the data contract.
        commit: git commit of the code, or "unknown".
        is_dirty: whether the code differed from the commit; None if unknown.
        changed_files: in which files, "" if that was not recorded.
        dirty_is_allowed: whether the user passed --allow-dirty.
        is_demo: whether it was trained on drawn images; None if unknown.
        demo_is_allowed: whether the user passed --demo.
        replaces_real: whether the model in production was trained on real concrete; None if unknown.
        was_rolled_back: whether this version was rolled back from production.
        left_out_aurocs: AUROC on the worst source left out when it was trained, by its name; empty if none was.
        not_left_out: names of the sources with too few images for that, "" if there was none.
    """

    data_hashes: Mapping[str, str]
    contract: str
    commit: str
    is_dirty: bool | None
    changed_files: str
    dirty_is_allowed: bool
    is_demo: bool | None
    demo_is_allowed: bool
    replaces_real: bool | None
    was_rolled_back: bool
    left_out_aurocs: Mapping[str, float]
    not_left_out: str = ""


@dataclass(frozen=True)
class Evidence:
    """All evidence for a decision. `comparisons` has "production" and "best"; it is empty for the first model.

    `tracer` has F1 of crack lines on drawn cracks; it is None if the challenger's tracer is the one in use.
    """

    own: OwnScores | Unknown
    comparisons: Mapping[str, Comparison | Unknown]
    tracer: Change | Unknown | None
    operations: Operations | Unknown
    lineage: Lineage | Unknown
