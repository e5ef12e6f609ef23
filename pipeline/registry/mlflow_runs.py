"""Log a `dvc repro` to MLflow: a child run for each candidate under one parent run."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from pipeline.params import Params
from pipeline.registry import runs
from pipeline.registry.versions import NOT_LEFT_OUT_TAG, WORST_LEFT_OUT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MAX_NAME = 500  # characters in the name of an MLflow data set
MAX_TAG = 5000  # in the value of a tag


@dataclass(frozen=True)
class Results:
    """Files and folders that the stages before `register` wrote; each is a flag of `register`, with its help."""

    datasets: Path = field(metadata={"help": "folder with a folder per data set"})
    validated: Path = field(metadata={"help": "folder of the results of validate"})
    models: Path = field(metadata={"help": "folder with a folder per candidate"})
    candidates: Path = field(metadata={"help": "folder of the candidates' validation scores"})
    histories: Path = field(metadata={"help": "folder of the candidates' histories"})
    manifest: Path = field(metadata={"help": "Parquet file of split"})
    scores: Path = field(metadata={"help": "scores.json of evaluate"})
    predictions: Path = field(metadata={"help": "Parquet file of evaluate"})
    plots: Path = field(metadata={"help": "folder of the tables of report"})
    report: Path = field(metadata={"help": "HTML file of report"})
    reference: Path = field(metadata={"help": "Parquet file of reference"})
    tracer: Path = field(metadata={"help": "folder of the tracer of train_tracer"})
    tracer_metrics: Path = field(metadata={"help": "JSON file of train_tracer"})
    dvc_lock: Path = field(metadata={"help": "dvc.lock, for the hashes of the data"})


def data_hashes(dvc_lock: Path, params: Params) -> dict[str, str]:
    """Return tags with the DVC hash of each data set's source and of what `ingest` wrote, read from dvc.lock.

    A path is part of the value, because MLflow takes few characters in names. Stages of data sets that are no longer in
    params.yaml, which DVC keeps in dvc.lock, are left out.
    """
    stages = (yaml.safe_load(dvc_lock.read_text(encoding="utf-8")) if dvc_lock.exists() else {}).get("stages", {})
    return {
        f"dvc.{name}.{kind}": f"{entry['md5']} {entry['path']}"
        for name in params.datasets
        for kind, entries in (("source", "deps"), ("images", "outs"))
        for entry in stages.get(f"ingest@{name}", {}).get(entries, ())
        if not entry["path"].startswith("pipeline/")
    }


def contract_state(validated: Path, params: Params) -> str:
    """Return "passed" if every data set passed the data contract, else "failed"."""
    results = [validated / f"{name}.json" for name in params.datasets]
    kept = all(result.exists() and json.loads(result.read_text())["success"] is True for result in results)
    return "passed" if kept else "failed"


def complete_candidates(
    client: "MlflowClient", experiment_id: str, parent_id: str, params: Params, results: Results
) -> dict[str, str]:
    """Complete the run of each candidate: params, curves and validation scores; return candidate -> run id."""
    run_ids = {}
    for name in params.candidates:
        usable = [
            run
            for run in runs.child_runs(client, experiment_id, parent_id, name)
            if run.info.status in ("RUNNING", "FINISHED")
        ]
        run_id = usable[0].info.run_id if usable else runs.create_child(client, experiment_id, parent_id, params, name)
        with runs.ending(client, run_id):
            rows = pd.read_csv(results.histories / f"{name}.csv").to_dict(orient="records")
            known = {metric.step for metric in client.get_metric_history(run_id, "val_loss")}
            runs.log_epochs(client, run_id, [row for row in rows if row["step"] not in known])  # type: ignore[misc]
            scores = json.loads((results.candidates / f"{name}.json").read_text())
            _log_scores(client, run_id, {"validation": scores})
        run_ids[name] = str(run_id)
    return run_ids


def _log_scores(client: "MlflowClient", run_id: str, scores: dict[str, Any]) -> None:
    values = {name: value for name, value in runs.flatten(scores).items() if value is not None}
    runs.log_epochs(client, run_id, [{"step": 0, **values}])


def complete_parent(
    client: "MlflowClient", parent_id: str, params: Params, results: Results, scores: dict[str, Any]
) -> None:
    """Log data, params, test scores, plots and the report of the repro to the parent run."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.pandas_dataset import from_pandas

    left_out = {"candidates", *runs.SECTIONS_OUTSIDE_REPRO}
    runs.log_params(client, parent_id, params.model_dump(mode="json", by_alias=True, exclude=left_out))
    hashes = data_hashes(results.dvc_lock, params)
    for name, value in {**hashes, "cracks.candidate": scores["candidate"]}.items():
        client.set_tag(parent_id, name, value)
    logged = {name: scores[name] for name in ("split", "test", "tests", "external")}
    logged["tracer"] = {"f1": tracer_f1(results)}
    sources = scores["sources"]
    if worst := sources["worst"]:
        aurocs = {"worst": sources["scores"][worst]["auroc"], "mean": sources["mean"]["auroc"]}
        logged |= {f"source_auroc_{name}": value for name, value in aurocs.items()}
    _log_scores(client, parent_id, logged)
    for path in (results.report, results.scores, results.manifest, results.dvc_lock):
        if path.exists():
            client.log_artifact(parent_id, str(path))
    client.log_dict(parent_id, params.model_dump(mode="json", by_alias=True), "params.yaml")
    client.log_artifacts(parent_id, str(results.plots), "plots")
    manifest = pd.read_parquet(results.manifest)
    with mlflow.start_run(run_id=parent_id):
        for split, rows in manifest.groupby("split"):
            names = "+".join(sorted(rows["dataset"].unique()))
            table = rows[["dataset", "path", "label", "group"]].reset_index(drop=True)
            dataset = from_pandas(table, source=CodeDatasetSource(hashes), name=names[:MAX_NAME], targets="label")
            mlflow.log_input(dataset, context=str(split))


def version_tags(params: Params, results: Results, scores: dict[str, Any]) -> dict[str, str]:
    """Return the tags of the version that a repro registers: scores, and the lineage that the gate reads."""
    return {
        "candidate": scores["candidate"],
        "trained_on": "+".join(scores["trained_on"]),
        "demo": str(scores["demo"]).lower(),
        "contract": contract_state(results.validated, params),
        **{f"test_{score}": _rounded(scores["test"][score]) for score in ("f1", "auroc", "ece")},
        "tracer_f1": _rounded(tracer_f1(results)),
        **runs.code_version(),
        **data_hashes(results.dvc_lock, params),
    }


def tracer_f1(results: Results) -> float:
    """Return F1 of crack lines of the tracer, as `train_tracer` measured it."""
    return float(json.loads(results.tracer_metrics.read_text())["lines"])


def tag_sources(client: "MlflowClient", version: "ModelVersion", scores: dict[str, Any]) -> None:
    """Tag a version with the worst source left out, and with those that had too few images for that, if there are any.

    One that was registered before that was measured gets the tags, too.
    """
    sources, external = scores["sources"], scores["external"]
    aurocs = {name: float(one["auroc"]) for name, one in sources["scores"].items() if name not in external}
    worst = min(aurocs, key=lambda name: aurocs[name], default=None)
    tags = {
        WORST_LEFT_OUT_TAG: f"{aurocs[worst]:.4f} {worst}" if worst else "",
        NOT_LEFT_OUT_TAG: ", ".join(name for name in sources["not_measured"] if name not in external)[:MAX_TAG],
    }
    for tag, text in tags.items():
        if text or tag in version.tags:
            client.set_model_version_tag(version.name, version.version, tag, text)


def _rounded(score: float | None) -> str:
    return "none" if score is None else f"{score:.4f}"
