"""Publish the results of a run as Prefect artifacts."""

from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from pipeline.params import Params
from pipeline.registry import run_summary


def publish_contracts(params: Params, folder: Path) -> None:
    """Publish the validation result of each data set and of the split."""
    for name in (*params.datasets, "split"):
        if (folder / f"validation-{name}.json").exists():
            report = run_summary.read_report(folder, f"validation-{name}.json")
            verdict = "met" if report["success"] else "BROKEN"
            create_table_artifact(
                run_summary.contract_rows(report), f"contract-{_key(name)}", f"The contract of {name}: {verdict}"
            )


def publish_results(params: Params, folder: Path) -> None:
    """Publish the candidates, the scores of the chosen one, and links to its run and the report."""
    chosen = run_summary.read_report(folder, "scores.json")["candidate"]
    rows = run_summary.candidate_rows(folder, list(params.candidates), chosen)
    create_table_artifact(rows, "candidates", "Scores on validation; the lowest selection loss is chosen")
    create_markdown_artifact("\n\n".join(run_summary.summary_lines(folder)), "result", "Results of the run")
    registered = run_summary.read_report(folder, "registered.json")
    for name, address in run_summary.mlflow_addresses(registered["run_id"]).items() if registered["run_id"] else ():
        create_link_artifact(address, address, f"mlflow-{name}", f"The {name} in MLflow")


def _key(name: str) -> str:
    return name.replace("_", "-")  # keys may contain only letters, digits and dashes
