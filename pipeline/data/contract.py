"""The data contract: the rules for a data set as a Great Expectations suite, and their results.

Columns are computed first; then the library's own expectations compare them with the limits of params.yaml. A broken
rule of severity "warning" is reported and does not fail the contract.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd

from pipeline.errors import RefusedError
from pipeline.files import write_json
from pipeline.params import Contract

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

log = logging.getLogger(__name__)

N_PATHS = 10  # listed for a broken rule


@dataclass(frozen=True)
class Rule:
    """A rule of the contract and its result.

    Attributes:
        text: the rule in words, such as "no side is shorter than 64 px".
        severity: fail if breaking the rule fails the contract, else warn.
        success: whether the rule is met.
        observed: what was found, in words.
        paths: at most ten images that break it.

    """

    text: str
    severity: Literal["fail", "warn"]
    success: bool
    observed: str
    paths: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """`met`, `broken`, or `warning` for a broken rule of severity warn."""
        if self.success:
            return "met"
        return "broken" if self.severity == "fail" else "warning"


def files_table(inventory: pd.DataFrame, quarantine: pd.DataFrame, copies: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each file found, with the computed columns that the rules refer to.

    For files that cannot be read, `decodable` is 0 and only `path` is set besides.

    Args:
        inventory: of `ingest`.
        quarantine: of `ingest`; readable images, whose label is missing or disputed, are left out.
        copies: columns is_copy and is_conflict, rows as in the inventory.
    """
    images = inventory.assign(
        decodable=1,
        is_crack=(inventory["label"] == "crack").astype(int),
        is_intact=(inventory["label"] == "intact").astype(int),
        shorter_side_px=inventory[["height", "width"]].min(axis=1),
        longer_side_px=inventory[["height", "width"]].max(axis=1),
        has_photo=inventory["photo"].notna().astype(int),
        is_copy=copies["is_copy"].astype(int).to_numpy(),
        is_conflict=copies["is_conflict"].astype(int).to_numpy(),
    ).drop(columns=["fingerprint"])
    unreadable = quarantine[~quarantine["is_image"]]
    return pd.concat([images, unreadable[["path"]].assign(decodable=0)], ignore_index=True)


def dataset_rules(contract: Contract, *, photos_are_named: bool) -> list["Expectation"]:
    """Return the rules for one data set, over the columns of `files_table`; `notes` has each rule in words."""
    import great_expectations.expectations as gxe

    least, share = contract.min_images_per_label, contract.min_minority_share
    return [
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column="label", value_set=["crack", "intact"], notes="both labels are there, and no other"
        ),
        gxe.ExpectColumnSumToBeBetween(
            column="is_crack", min_value=least, notes=f"at least {least} images are labelled crack"
        ),
        gxe.ExpectColumnSumToBeBetween(
            column="is_intact", min_value=least, notes=f"at least {least} images are labelled intact"
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="is_crack",
            min_value=share,
            max_value=1 - share,
            notes=f"the rarer label makes up at least {100 * share:.1f} %",
        ),
        *image_rules(contract, photos_are_named=photos_are_named),
    ]


def image_rules(contract: Contract, *, photos_are_named: bool) -> list["Expectation"]:
    """Return the rules that each batch must meet too, however small and even if it has only one label."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    common = contract.min_share_in_range
    rules: list[Expectation] = [
        gxe.ExpectColumnMeanToBeBetween(
            column="decodable",
            min_value=contract.min_decodable_share,
            notes=f"at least {100 * contract.min_decodable_share:.1f} % of the files are images that can be read",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="shorter_side_px",
            min_value=contract.min_size_px,
            notes=f"no side is shorter than {contract.min_size_px} px",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="longer_side_px",
            max_value=contract.max_size_px,
            notes=f"no side is longer than {contract.max_size_px} px",
        ),
        gxe.ExpectColumnValuesToBeUnique(column="id", notes="every image has an id of its own"),
        gxe.ExpectColumnValuesToBeInSet(
            column="is_conflict", value_set=[0], notes="no image has a copy with the other label"
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="is_copy",
            max_value=contract.max_copies_share,
            severity=FailureSeverity.WARNING,
            notes=f"at most {100 * contract.max_copies_share:.1f} % of the images are copies of others",
        ),
    ]
    for column, (low, high) in contract.ranges.items():
        words = f"{column} is between {low:g} and {high:g} for at least {100 * common:.1f} % of the images"
        rules.append(
            gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, mostly=common, notes=words)
        )
    if photos_are_named:
        rules.append(
            gxe.ExpectColumnValuesToBeInSet(
                column="has_photo", value_set=[1], notes="the photo of every image is known"
            )
        )
    return rules


def check(table: pd.DataFrame, rules: list["Expectation"]) -> list[Rule]:
    """Validate `table`, which has a column path, and return the result of each rule."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # this logger sets its own level to INFO, regardless of the library's level
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("inventory").add_dataframe_asset("files")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    suite = gx.ExpectationSuite(name="contract", expectations=rules)
    results = []
    for outcome in batch.validate(suite, result_format="COMPLETE").results:
        config = cast("ExpectationConfiguration", outcome.expectation_config)
        broken_by = outcome.result.get("unexpected_index_list") or []
        results.append(
            Rule(
                text=str(config.notes),
                severity="warn" if config.severity == "warning" else "fail",
                success=bool(outcome.success),
                observed=_observed(outcome.result),
                paths=tuple(str(path) for path in table["path"].iloc[broken_by[:N_PATHS]]),
            )
        )
    return results


def enforce(name: str, rules: Sequence[Rule], headline: dict[str, str], *, report: Path, page: Path) -> None:
    """Write the report; raise RefusedError if a rule is broken.

    Args:
        name: of the data set, or "split".
        rules: with their results.
        headline: figures of the report, by name.
        report: JSON file to write.
        page: HTML page of the results, for the error message.

    Raises:
        RefusedError: a rule of severity "fail" is broken; the message lists each with what was observed.
    """
    broken = [rule for rule in rules if rule.state == "broken"]
    write_json(
        report,
        {"dataset": name, "success": not broken, "facts": headline, "rules": [asdict(rule) for rule in rules]},
    )
    for rule in rules:
        if rule.state == "warning":
            log.warning("%s: warning: %s. Observed: %s", name, rule.text, rule.observed)
    if broken:
        raise RefusedError(
            f"{name} breaks its contract:\n{format_broken_rules(broken)}\n"
            f"Correct the data, or change `contract` in params.yaml. See {page} for pictures."
        )
    log.info("%s: contract passed", name)


def format_broken_rules(broken: Sequence[Rule]) -> str:
    """Return a line for each broken rule with what was observed, followed by paths of images that break it."""
    return "\n".join(
        f"  broken: {rule.text}. Observed: {rule.observed}" + "".join(f"\n    {path}" for path in rule.paths)
        for rule in broken
    )


def _observed(result: dict[str, Any]) -> str:
    if result.get("observed_value") is not None:
        value = result["observed_value"]
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if "partial_missing_list" in result:  # an expectation about a set of values
        missing, unexpected = result["partial_missing_list"], result["partial_unexpected_list"]
        return f"missing {missing}, unexpected {unexpected}" if missing or unexpected else "exactly these"
    return f"{len(result.get('unexpected_index_list') or [])} images that break the rule"
