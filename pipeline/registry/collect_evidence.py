"""Collect the evidence for the gate: scores and comparisons on the current test images, operations, lineage."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from pipeline.errors import CracksError, UnavailableError
from pipeline.params import Decide
from pipeline.registry import runs
from pipeline.registry.check_served import check_in_subprocess
from pipeline.registry.evidence import Evidence, Lineage, Operations, Unknown
from pipeline.registry.score_versions import TestSet, compare, own_scores, score_version, with_predictions
from pipeline.registry.versions import fetch, worst_left_out

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
    return Lineage(
        data_hashes={name: value for name, value in tags.items() if name.startswith("dvc.")},
        contract=tags.get("contract", "unknown"),
        commit=commit,
        is_dirty=True if True in states else None if None in states else False,
        changed_files=tags.get(runs.CHANGED_TAG) or run_tags.get(runs.CHANGED_TAG, ""),
        dirty_is_allowed=dirty_is_allowed,
        is_demo=is_demo.get(tags.get("demo", "")),
        demo_is_allowed=demo_is_allowed,
        replaces_real=_replaces_real(production),
        was_rolled_back=was_rolled_back,
        left_out_aurocs=worst_left_out(tags),
    )


def _replaces_real(production: "ModelVersion | None") -> bool | None:
    if production is None:
        return False
    return {"true": False, "false": True}.get(production.tags.get("demo", ""))


def operations_of(folder: Path, test_set: TestSet) -> Operations:
    """Return what a new process measures for the fetched model in `folder`, with an image of median size."""
    height_px, width_px = np.median(test_set.images.sizes, axis=0).astype(int)
    return check_in_subprocess(folder, int(height_px), int(width_px))


def collect(
    name: str, version: str, incumbents: Mapping[str, str], lineage: Lineage, test_set: TestSet, costs: Decide
) -> tuple[Evidence, pd.DataFrame]:
    """Return the evidence about a version, and the predictions of each model that it is based on.

    What cannot be determined is `Unknown`, with the reason.

    Args:
        name: name of the registered model.
        version: number of the candidate for production.
        incumbents: role ("production", "best") -> number of the version to compare with.
        lineage: lineage of `version`.
        test_set: the current test set.
        costs: costs of a missed crack and of a false alarm.
    """
    with tempfile.TemporaryDirectory() as scratch:
        numbers = dict.fromkeys((version, *incumbents.values()))
        folders = {number: fetched(name, number, Path(scratch) / number) for number in numbers}
        scored = {number: known(score_version, number, folder, test_set) for number, folder in folders.items()}
        operations = known(operations_of, folders[version], test_set)
    challenger = scored[version]
    evidence = Evidence(
        own=known(own_scores, test_set, challenger),
        comparisons={
            role: known(compare, test_set, challenger, scored[number], costs) for role, number in incumbents.items()
        },
        operations=operations,
        lineage=lineage,
    )
    return evidence, with_predictions(test_set, scored)


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
