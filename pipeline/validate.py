"""Hold a data set against its contract, a Great Expectations suite over the inventory, before anything trains on it.

Writes --report, green or red; --receipt, which `split` asks for, only when green. Red ends with exit code 3.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from pipeline.errors import RefusedError
from pipeline.files import write_json
from pipeline.images import INVENTORY_FILE, QUARANTINE_FILE
from pipeline.params import Contract, load_params
from pipeline.stage import run_main, stage_parser

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

log = logging.getLogger(__name__)


def files_table(inventory: pd.DataFrame, quarantine: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each file found, with the computed columns that the suite speaks of.

    Files in quarantine have `decodable` 0 and no other values but `path`.
    """
    images = pd.DataFrame(
        {
            "path": inventory["path"],
            "label": inventory["label"],
            "decodable": 1,
            "is_crack": (inventory["label"] == "crack").astype(int),
            "is_intact": (inventory["label"] == "intact").astype(int),
            "shorter_side_px": inventory[["height", "width"]].min(axis=1),
            "longer_side_px": inventory[["height", "width"]].max(axis=1),
        }
    )
    return pd.concat([images, quarantine[["path"]].assign(decodable=0)], ignore_index=True)


def contract_suite(contract: Contract) -> "ExpectationSuite":
    """Return the contract as a suite over `files_table`; each expectation's notes say it in words."""
    import great_expectations.expectations as gxe
    from great_expectations import ExpectationSuite

    least, share = contract.min_images_per_label, contract.min_minority_share
    return ExpectationSuite(
        name="contract",
        expectations=[
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
                notes=f"the rarer label makes up at least {share:.1%}",
            ),
            gxe.ExpectColumnMeanToBeBetween(
                column="decodable",
                min_value=contract.min_decodable_share,
                notes=f"at least {contract.min_decodable_share:.1%} of the files are images that can be read",
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
            gxe.ExpectColumnValuesToBeUnique(column="path", notes="every path occurs once"),
        ],
    )


def _observed(result: dict[str, Any]) -> Any:
    if result.get("observed_value") is not None:
        return result["observed_value"]
    if "partial_missing_list" in result:  # of a set of values
        return f"missing {result['partial_missing_list']}, unexpected {result['partial_unexpected_list']}"
    return f"{len(result.get('unexpected_index_list') or [])} files that break the rule"


def check(files: pd.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    """Return for each expectation of the contract {rule, success, observed, paths of at most ten offenders}."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it sets its own to INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("inventory").add_dataframe_asset("files")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": files})
    validation = batch.validate(contract_suite(contract), result_format="COMPLETE")
    rows = []
    for outcome in validation.results:
        result = outcome.result
        offenders = result.get("unexpected_index_list") or []
        rows.append(
            {
                "rule": cast("ExpectationConfiguration", outcome.expectation_config).notes,
                "success": bool(outcome.success),
                "observed": _observed(result),
                "paths": [str(path) for path in files["path"].iloc[offenders[:10]]],
            }
        )
    return rows


def run(name: str, contract: Contract, dataset: Path, report: Path, receipt: Path) -> None:
    """Check the ingested data set in the folder `dataset`, write the report and, when green, the receipt.

    Raises:
        RefusedError: an expectation failed; the message has each with what was observed.

    """
    receipt.unlink(missing_ok=True)  # of a former run, which would speak for data that it has not seen
    quarantine = pd.read_csv(dataset / QUARANTINE_FILE, keep_default_na=False)  # a file may be named "NA"
    files = files_table(pd.read_parquet(dataset / INVENTORY_FILE), quarantine)
    rows = check(files, contract)
    success = all(row["success"] for row in rows)
    write_json(
        report,
        {"dataset": name, "success": success, "rules": rows, "quarantine": quarantine.to_dict(orient="records")},
    )
    if not success:
        red = "\n".join(
            f"  not so: {row['rule']}. Observed: {row['observed']}" + "".join(f"\n    {path}" for path in row["paths"])
            for row in rows
            if not row["success"]
        )
        raise RefusedError(
            f"Data set {name} breaks its contract:\n{red}\nMend the data, or change `contract` in params.yaml. "
            f"All of it is in {report}."
        )
    write_json(receipt, {"dataset": name, "success": True})
    log.info("%s: contract green, %d files, %d of them in quarantine", name, len(files), len(quarantine))


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--name", required=True, help="the data set's name in params.yaml")
    parser.add_argument("--dataset", type=Path, required=True, help="folder that ingest wrote")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--receipt", type=Path, required=True, help="JSON file to write when green")
    args = parser.parse_args()
    run(args.name, load_params(args.params).contract, args.dataset, args.report, args.receipt)


if __name__ == "__main__":
    run_main(main)
