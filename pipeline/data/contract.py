"""The data contract: the rules for a data set as a Great Expectations suite, and their results.

Expectations of the library compare the columns of the inventory with the limits of params.yaml. A broken rule of
severity "warning" is reported and does not fail the contract.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from pipeline.data.data_context import run_checkpoint
from pipeline.data.images import MISFIT
from pipeline.errors import RefusedError
from pipeline.files import write_json
from pipeline.params import Contract

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

log = logging.getLogger(__name__)

NONE_DOUBTFUL = "of no two images is it doubtful whether they are copies"


@dataclass(frozen=True)
class Rule:
    """A rule of the contract and its result."""

    text: str  # such as "every image has an id of its own"
    severity: Literal["fail", "warn"]  # whether breaking it fails the contract
    success: bool
    observed: str  # what was found, in words
    paths: tuple[str, ...] = ()  # at most ten images that break it

    @property
    def state(self) -> str:
        """`met`, `broken`, or `warning` for a broken rule of severity warn."""
        if self.success:
            return "met"
        return "broken" if self.severity == "fail" else "warning"


def files_table(inventory: pd.DataFrame, quarantine: pd.DataFrame, copies: pd.DataFrame) -> pd.DataFrame:
    """Return the inventory with the 0/1 columns that rules refer to, and a row for each unusable file.

    Of files that cannot be used, only `path` and is_misfit are set, 1 if its mask does not fit. Left out are readable
    images in quarantine, whose label is missing or disputed, and files that are no images of the user's. `copies` is
    the result of `audit.copies_within`.
    """
    images = inventory.assign(
        is_crack=(inventory["label"] == "crack").astype(int),
        **{name: copies[name].astype(int).to_numpy() for name in ("is_copy", "is_conflict", "is_doubtful")},
    ).drop(columns=["fingerprint"])
    unusable = quarantine[~quarantine["is_image"] & ~quarantine["is_left_out"]]
    misfits = unusable[["path"]].assign(is_misfit=unusable["reason"].str.startswith(MISFIT).astype(int))
    return pd.concat([images, misfits], ignore_index=True)


def dataset_rules(contract: Contract, *, photos_are_named: bool) -> list["Expectation"]:
    """Return the rules for one data set, over the columns of `files_table`; `notes` has each rule in words."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    least, share = contract.min_images_per_label, contract.min_minority_share
    return [
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column="label", value_set=["crack", "intact"], notes="both labels are there, and no other"
        ),
        *(
            gxe.ExpectTableRowCountToBeBetween(
                row_condition=Column("label") == label,
                min_value=least,
                notes=f"at least {least:,} images are labelled {label}",
            )
            for label in ("crack", "intact")
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
    from great_expectations.expectations.row_conditions import Column

    low_px, high_px, common = contract.min_size_px, contract.max_size_px, contract.min_share_in_range
    rules: list[Expectation] = [
        gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(
            column="sha256",
            min_value=contract.min_decodable_share,
            notes=f"at least {100 * contract.min_decodable_share:.1f} % of the files are images that can be read",
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=side,
                min_value=low_px,
                max_value=high_px,
                notes=f"the {side} of every image is between {low_px:,} and {high_px:,} px",
            )
            for side in ("height", "width")
        ),
        gxe.ExpectColumnValuesToBeUnique(column="id", notes="every image has an id of its own"),
        none_of("is_conflict", "no image has a copy with the other label"),
        none_of("is_doubtful", NONE_DOUBTFUL, severity=FailureSeverity.WARNING),
        gxe.ExpectColumnMeanToBeBetween(
            column="is_copy",
            max_value=contract.max_copies_share,
            severity=FailureSeverity.WARNING,
            notes=f"at most {100 * contract.max_copies_share:.1f} % of the images are copies of others",
        ),
    ]
    for column, (low, high) in contract.ranges.items():
        words = f"{column} is between {low:,g} and {high:,g} for at least {100 * common:.1f} % of the images"
        rules.append(
            gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, mostly=common, notes=words)
        )
    if photos_are_named:
        rules.append(
            gxe.ExpectColumnValuesToNotBeNull(
                column="photo",
                row_condition=Column("label").is_not_null(),  # a file that cannot be read has no photo either
                notes="the photo of every image is known",
            )
        )
    return rules


def none_of(column: str, words: str, **settings: Any) -> "Expectation":
    """Return the rule that a column of 0 and 1 is 0 in every row; `words` say what that means."""
    import great_expectations.expectations as gxe

    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[0], notes=words, **settings)


def check(
    table: pd.DataFrame, rules: list["Expectation"], name: str = "contract", context: Path | None = None
) -> list[Rule]:
    """Validate `table`, which has a column path and those of the rules, and return the result of each rule.

    `name` (of the data set, or "split") is that of the suite and checkpoint. The Data Context in the folder `context`
    keeps the result; with None it is not kept.
    """
    return [
        Rule(
            text=str(one.expectation_config.notes),  # type: ignore[union-attr]
            severity="warn" if one.expectation_config.severity == "warning" else "fail",  # type: ignore[union-attr]
            success=bool(one.success),
            observed=_observed(one.result),
            paths=tuple(str(row["path"]) for row in one.result.get("partial_unexpected_index_list") or ()),
        )
        for one in run_checkpoint(name, rules, table, context)
    ]


def enforce(name: str, rules: Sequence[Rule], headline: dict[str, str], *, report: Path, page: Path) -> None:
    """Write the results and the `headline` figures as JSON to `report`; warn of broken rules of severity "warn".

    Raises RefusedError if a rule of severity "fail" is broken; it lists each, and names the `page` with pictures.
    """
    broken = broken_rules(rules)
    results = [asdict(rule) for rule in rules]
    write_json(report, {"dataset": name, "success": not broken, "facts": headline, "rules": results})
    for rule in rules:
        if rule.state == "warning":
            log.warning("%s: warning: %s. Observed: %s", name, rule.text, rule.observed)
    if broken:
        raise RefusedError(
            f"{name} breaks its contract:\n{broken}\n"
            f"Correct the data, or change `contract` in params.yaml. See {page} for pictures, "
            "and for what to write there if a label is wrong or two images are no copies."
        )
    log.info("%s: contract passed", name)


def broken_rules(rules: Sequence[Rule]) -> str:
    """Return a line for each broken rule with what was observed, and paths of images that break it; empty if none."""
    return "\n".join(
        "\n    ".join([f"  broken: {rule.text}. Observed: {rule.observed}", *rule.paths])
        for rule in rules
        if rule.state == "broken"
    )


def _observed(result: dict[str, Any]) -> str:
    if (value := result.get("observed_value")) is not None:
        if isinstance(value, float):  # all of these are shares
            return f"{100 * value:.4g} %"
        return _images(value) if isinstance(value, int) else str(value)
    if "partial_missing_list" in result:  # an expectation about a set of values
        missing, unexpected = result["partial_missing_list"], result["partial_unexpected_list"]
        return f"missing {missing}, unexpected {unexpected}" if missing or unexpected else "exactly these"
    n_broken = result.get("unexpected_count", 0)
    return f"{_images(n_broken)} that {'breaks' if n_broken == 1 else 'break'} the rule"


def _images(n: int) -> str:
    return f"{n:,} image{'s' if n != 1 else ''}"
