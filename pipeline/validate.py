"""Validate a data set against its contract, a Great Expectations suite over the inventory, before it is trained on.

Writes --report (JSON) and --page (HTML with pictures) in any case, and --result, which `split` requires, only if the
contract is passed. Otherwise ends with exit code 3. The Data Context in the folder --context keeps every result.
"""

from pathlib import Path

from pipeline.data.audit import audit
from pipeline.data.contract import enforce
from pipeline.data.images import PackedImages, read_quarantine
from pipeline.files import write_json, write_text
from pipeline.params import Params, load_params, named
from pipeline.stage import run_main, stage_parser


def run(params: Params, name: str, dataset: Path, *, context: Path, report: Path, page: Path, result: Path) -> None:
    """Validate the ingested data set in the folder `dataset`; write report and page and, if it passed, the result.

    Raises:
        RefusedError: a rule is broken; the message lists each with what was observed.
    """
    settings = named(params.datasets, name, "data set")
    result.unlink(missing_ok=True)  # of an earlier run, perhaps on other data
    quarantine = read_quarantine(dataset)
    found = audit(name, settings, params, PackedImages(dataset), quarantine, context=context)
    write_text(page, found.page)
    enforce(name, found.rules, found.facts, report=report, page=page)
    write_json(result, {"dataset": name, "success": True})


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    parser.add_argument("--name", required=True, help="the data set's name in params.yaml")
    parser.add_argument("--dataset", type=Path, required=True, help="folder that ingest wrote")
    parser.add_argument("--context", type=Path, required=True, help="folder of the Data Context of Great Expectations")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--page", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write if the contract is passed")
    args = parser.parse_args()
    params = load_params(args.params)
    places = {"context": args.context, "report": args.report, "page": args.page, "result": args.result}
    run(params, args.name, args.dataset, **places)


if __name__ == "__main__":
    run_main(main)
