"""The project's Great Expectations Data Context, an ordinary file Data Context that is created on demand.

It has a pandas data source, a suite, a validation definition and a checkpoint for each data set and for the split, all
of the same name, and the results of all validations.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.errors import CracksError
from pipeline.files import locked, naming
from pipeline.project import REPORTS

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.data_context import AbstractDataContext
    from great_expectations.expectations import Expectation

RESULTS = Path("uncommitted/validations")  # where Great Expectations keeps the results, in the folder of the context
N_PATHS = 10  # listed for a broken rule


@contextmanager
def open_context(folder: Path | None) -> Iterator["AbstractDataContext"]:
    """Open the Data Context in `folder`, which is created if it is missing, or one in memory if that is None.

    One process has it at a time; others wait.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # this logger sets its own level to INFO, regardless of the library's level
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    with _sole_writer(folder) if folder else nullcontext():
        context: AbstractDataContext = (
            gx.get_context(mode="file", context_root_dir=folder) if folder else gx.get_context(mode="ephemeral")
        )
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        context.variables.analytics_enabled = False  # also where the context is used without this project
        context.variables.save()
        yield context


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of the context; delete first what a killed process may have left half written.

    Great Expectations writes its files in place. While a process writes, the file of the lock is not empty.
    """
    with naming(folder), locked(folder / ".lock") as lock:
        if os.fstat(lock.fileno()).st_size:
            _delete_unfinished(folder)
        lock.write("in use\n")
        lock.flush()
        yield
        lock.truncate(0)


def _delete_unfinished(folder: Path) -> None:
    """Delete every file but the lock and the complete results; all others are written again when they are needed."""
    for path in folder.rglob("*"):
        is_result = path.is_relative_to(folder / RESULTS) and path.suffix == ".json"
        if path.is_file() and path.name != ".lock" and not (is_result and _is_json(path)):
            path.unlink()


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()))
    except ValueError:
        return False


def run_checkpoint(
    name: str, expectations: list["Expectation"], table: pd.DataFrame, folder: Path | None
) -> "list[ExpectationValidationResult]":
    """Validate `table`, which has a column path, by the checkpoint `name` of the Data Context in `folder`.

    The context keeps the result, which names the paths of at most `N_PATHS` rows that break an expectation.
    """
    import great_expectations as gx

    with open_context(folder) as context:
        asset = context.data_sources.add_or_update_pandas(name).add_dataframe_asset("files")
        # the page that the stage writes, as seen from the page of the suite in the Data Docs
        page = Path("../../../../../..") / REPORTS / f"validation-{name}.html"
        suite = gx.ExpectationSuite(name=name, expectations=expectations, notes=f"[With pictures]({page})")
        batch = asset.add_batch_definition_whole_dataframe("all")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add_or_update(suite))
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[context.validation_definitions.add_or_update(definition)],
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": ["path"],
                "partial_unexpected_count": N_PATHS,
            },
        )
        outcome = context.checkpoints.add_or_update(checkpoint).run(batch_parameters={"dataframe": table})
    (result,) = outcome.run_results.values()
    return result.results


def build_data_docs(folder: Path) -> str:
    """Build the Data Docs; return the URL of their first page. Raises CracksError if nothing has been validated yet."""
    if not (folder / RESULTS).is_dir():
        raise CracksError(
            f"There is no validation result in {folder} yet. Run `dvc repro validate` or `make run` first."
        )
    with open_context(folder) as context:
        (index,) = context.build_data_docs().values()
    return Path(index.removeprefix("file://")).as_uri()  # Great Expectations does not escape a space
