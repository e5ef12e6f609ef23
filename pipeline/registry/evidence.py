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
    """Scores of one model on the current test images that it was not trained on."""

    n_images: int  # that are scored
    n_groups: int  # of these
    scores: Mapping[str, Figure]  # by name (f1, recall, auroc, ece, ...), 0..1
    slice_recalls: Mapping[str, Figure]  # recall of each slice with enough cracks
    external_aurocs: Mapping[str, float]  # AUROC on each external test set with enough images
    too_small: tuple[str, ...] = ()  # names of the other external test sets


@dataclass(frozen=True)
class Change:
    """Scores, 0..1, of challenger and incumbent on the same images."""

    n_images: int
    challenger: Figure
    incumbent: Figure


@dataclass(frozen=True)
class Comparison:
    """The challenger compared with a model that is or was in production; both are scored again on the same images."""

    version: str  # number of the incumbent
    n_images: int  # test images that neither model was trained on
    n_groups: int  # of these
    n_groups_left_out: int  # number of test groups that either model was trained on
    test: Change  # weighted accuracies on those test images
    low: Figure  # lower end of the one-sided 97.5 % interval of the difference, challenger minus incumbent
    confidence: Figure  # confidence, 0..1, that the challenger is better
    slices: Mapping[str, Change]  # weighted accuracies on each slice of the test images
    external: Mapping[str, Change]  # and on each external test set


@dataclass(frozen=True)
class Operations:
    """Measurements of the served model in a new process."""

    golden_difference: Figure  # largest difference from the probabilities of the golden images at training
    p95_ms: Figure  # 95th percentile of the time to score one decoded image
    resident_mb: Figure  # resident memory of the process after scoring
    size_mb: Figure  # total size of the files that serving loads


@dataclass(frozen=True)
class Lineage:
    """The data and code that a model comes from."""

    data_hashes: Mapping[str, str]  # hash of the training data by path
    contract: str  # "passed" if every data set passed the data contract
    commit: str  # git commit of the code, or "unknown"
    is_dirty: bool | None  # whether the code differed from the commit; None if unknown
    changed_files: str  # in which files, "" if that was not recorded
    dirty_is_allowed: bool  # whether the user passed --allow-dirty
    is_demo: bool | None  # whether it was trained on drawn images; None if unknown
    demo_is_allowed: bool  # whether the user passed --demo
    replaces_real: bool | None  # whether the model in production was trained on real concrete; None if unknown
    was_rolled_back: bool  # whether this version was rolled back from production
    # AUROC on the worst source left out when it was trained, by its name; empty if none was
    left_out_aurocs: Mapping[str, float]
    not_left_out: str = ""  # names of the sources with too few images for that, "" if there was none


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
