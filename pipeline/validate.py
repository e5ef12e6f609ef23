"""Validate a data set against its contract, a Great Expectations suite over the inventory, before it is trained on.

Writes --report (JSON) and --page (HTML with pictures) in any case, and --result, which `split` requires, only if the
contract is passed. Otherwise ends with exit code 3. The Data Context in the folder --context keeps every result.
"""

from pathlib import Path
from typing import Annotated

from pipeline.data.audit import audit
from pipeline.data.contract import enforce
from pipeline.data.images import PackedImages, read_quarantine
from pipeline.files import write_json, write_text
from pipeline.params import Params, named
from pipeline.stage import run_main, stage_main


def run(
    params: Params,
    name: Annotated[str, "the data set's name in params.yaml"],
    dataset: Annotated[Path, "folder that ingest wrote"],
    *,
    context: Annotated[Path, "folder of the Data Context of Great Expectations"],
    report: Annotated[Path, "JSON file to write"],
    page: Annotated[Path, "HTML file to write"],
    result: Annotated[Path, "JSON file to write if the contract is passed"],
) -> None:
    """Validate the data set; write report and page and, if it passed, the result. Raises RefusedError otherwise."""
    settings = named(params.datasets, name, "data set")
    result.unlink(missing_ok=True)  # of an earlier run, perhaps on other data
    quarantine = read_quarantine(dataset)
    found = audit(name, settings, params, PackedImages(dataset), quarantine, context=context)
    write_text(page, found.page)
    enforce(name, found.rules, found.facts, report=report, page=page)
    write_json(result, {"dataset": name, "success": True})


main = stage_main(run)

if __name__ == "__main__":
    run_main(main)
