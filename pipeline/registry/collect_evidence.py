"""Collect the evidence for the gate: scores and comparisons on the current test images, operations, lineage."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from pipeline.crack_lines.tracer import load_tracer, tracer_file, tracer_identity
from pipeline.data.images import ImageSubset
from pipeline.errors import CracksError, UnavailableError
from pipeline.evaluation.line_scores import drawn_images, drawn_line_scores
from pipeline.params import Decide
from pipeline.registry import runs
from pipeline.registry.check_served import check_in_subprocess
from pipeline.registry.evidence import Change, Evidence, Lineage, Operations, Unknown
from pipeline.registry.score_versions import Scored, TestSet, compare, own_scores, score_version, with_predictions
from pipeline.registry.versions import NOT_LEFT_OUT_TAG, PRODUCTION, fetch, worst_left_out

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Found = TypeVar("Found")


def lineage_of(
    client: "MlflowClient",
    version: "ModelVersion",
    production: "ModelVersion | None",
    *,
    dirty_is_allowed: bool,
    demo_is_allowed: bool,
    was_rolled_back: bool,
) -> Lineage:
    """Return the lineage of a version, read from its tags and those of the run that trained it."""
    tags, run_tags = version.tags, client.get_run(str(version.run_id)).data.tags
    commit = tags.get(runs.COMMIT_TAG, "unknown")
    # a container image is built from a commit and holds no git repository to check for changes
    as_committed = None if commit == "unknown" else False
    states = {
        {"true": True, "false": False}.get(known.get(runs.DIRTY_TAG, "missing"), as_committed)
        for known in (tags, run_tags)
    }
    is_demo = {"true": True, "false": False}
    is_real = {"true": False, "false": True}
    return Lineage(
        data_hashes={name: value for name, value in tags.items() if name.startswith("dvc.")},
        contract=tags.get("contract", "unknown"),
        commit=commit,
        is_dirty=True if True in states else None if None in states else False,
        changed_files=tags.get(runs.CHANGED_TAG) or run_tags.get(runs.CHANGED_TAG, ""),
        dirty_is_allowed=dirty_is_allowed,
        is_demo=is_demo.get(tags.get("demo", "")),
        demo_is_allowed=demo_is_allowed,
        replaces_real=False if production is None else is_real.get(production.tags.get("demo", "")),
        was_rolled_back=was_rolled_back,
        left_out_aurocs=worst_left_out(tags),
        not_left_out=tags.get(NOT_LEFT_OUT_TAG, ""),
    )


def operations_of(folder: Path, test_set: TestSet) -> Operations:
    """Return what a new process measures for the fetched model in `folder`, with an image of median size."""
    height_px, width_px = np.median(test_set.images.sizes, axis=0).astype(int)
    return check_in_subprocess(folder, int(height_px), int(width_px))


def collect(
    name: str, version: str, incumbents: Mapping[str, str], lineage: Lineage, test_set: TestSet, costs: Decide
) -> tuple[Evidence, pd.DataFrame]:
    """Return the evidence about a version of the registered model `name`, and the predictions that it is based on.

    What cannot be determined is `Unknown`, with the reason. `incumbents` has role ("production", "best") -> number of
    the version to compare with; `costs` weighs missed cracks and false alarms.
    """
    with tempfile.TemporaryDirectory() as scratch:
        numbers = dict.fromkeys((version, *incumbents.values()))
        folders = {number: fetched(name, number, Path(scratch) / number) for number in numbers}
        scored = {number: known(score_version, number, folder, test_set) for number, folder in folders.items()}
        operations = known(operations_of, folders[version], test_set)
        trained_on = (found.groups_trained_on for found in scored.values() if isinstance(found, Scored))
        production = folders.get(incumbents.get(PRODUCTION, ""))
        tracer = known(tracer_change, test_set, folders[version], production, frozenset().union(*trained_on))
    challenger = scored[version]
    evidence = Evidence(
        own=known(own_scores, test_set, challenger),
        comparisons={
            role: known(compare, test_set, challenger, scored[number], costs) for role, number in incumbents.items()
        },
        tracer=tracer,
        operations=operations,
        lineage=lineage,
    )
    return evidence, with_predictions(test_set, scored)


def tracer_change(
    test_set: TestSet, challenger: Path, production: Path | None, trained_on: frozenset[str]
) -> Change | None:
    """Return F1 of crack lines, of the challenger's tracer and of the better of two others, on the same drawn cracks.

    These are production's and the one that ships: compared with production's alone, it could become a little worse
    with each promotion. None if production, or with nothing there the project, has the same one. Cracks are drawn on
    intact test images, but not on those of the groups `trained_on`. Raises CracksError if none is left, or a tracer
    cannot be loaded.
    """
    ours, in_use = (tracer_identity(tracer_file(folder)) for folder in (challenger, production))
    if ours == in_use:
        return None
    rows = test_set.rows
    is_free = (rows["split"] == "test") & (rows["label"] == "intact") & ~rows["group"].isin(trained_on)
    if not is_free.any():
        raise CracksError("each intact test image has been trained on by one of the versions compared")
    drawn = drawn_images(ImageSubset(test_set.images, np.flatnonzero(is_free)))
    tracers = {tracer_identity(tracer_file(folder)): load_tracer(folder) for folder in (None, production, challenger)}
    f1 = {identity: drawn_line_scores(tracer, drawn)["f1"] for identity, tracer in tracers.items()}
    return Change(len(drawn), f1.pop(ours), max(f1.values()))


def fetched(name: str, version: str, folder: Path) -> Path | Unknown:
    """Download the files needed to serve and score a version into `folder`; return their location."""
    return known(partial(fetch, only_served=True), name, version, folder)


def known(determine: Callable[..., Found], *arguments: Any) -> Found | Unknown:
    """Return `determine(*arguments)`, or why that cannot be determined: an argument is `Unknown`, or a `CracksError`.

    Raises UnavailableError: an outage is no reason to refuse a version.
    """
    if unknown := [argument for argument in arguments if isinstance(argument, Unknown)]:
        return unknown[0]
    try:
        return determine(*arguments)
    except UnavailableError:
        raise
    except CracksError as error:
        return Unknown(str(error))
