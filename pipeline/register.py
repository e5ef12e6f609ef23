"""Record the repro in MLflow and register its best model, as a new version with alias `challenger`.

Curves that training could not send live are completed from files. The same model never makes a second version. Inside
`dvc exp run` nothing is registered and no alias moves. Writes --out: name, version and run_id, null in an experiment.
"""

import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from pipeline import tracking
from pipeline.acquaintance import acquaint
from pipeline.decision import DECISION_FILE
from pipeline.errors import RefusedError, UnavailableError
from pipeline.files import write_json
from pipeline.images import LabelledImages, Pixels
from pipeline.known_concrete import KNOWN_CONCRETE_FILE
from pipeline.params import Params, load_params
from pipeline.project import in_experiment
from pipeline.served import MAX_GOLDEN_DIFFERENCE, ServedModel
from pipeline.stage import run_main, stage_parser
from pipeline.training_images import LEARNED_FROM_FILE, learned_from

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.classifier import Classifier

log = logging.getLogger(__name__)

ALIAS = "challenger"
HASH_TAG = "cracks.model_hash"
EXAMPLE_SIZE_PX = 32  # of the input example: MLflow stores it as JSON, and the graph takes any size
PINNED = ("tensorflow-cpu", "keras", "numpy", "pillow")
N_GOLDEN = 8  # images of validation, half of them cracked
GOLDEN_SIZE_PX = 256  # of larger ones, only the middle is kept


@dataclass(frozen=True)
class Results:
    """The files that the stages before have left."""

    datasets: Path
    validated: Path
    models: Path
    candidates: Path
    histories: Path
    manifest: Path
    metrics: Path
    predictions: Path
    plots: Path
    report: Path
    reference: Path
    dvc_lock: Path


def data_hashes(dvc_lock: Path) -> dict[str, str]:
    """Return the DVC hash of each source and each ingested data set, as dvc.lock has them."""
    stages = (yaml.safe_load(dvc_lock.read_text()) if dvc_lock.exists() else {}).get("stages", {})
    return {
        f"dvc.{entry['path']}": entry["md5"]
        for name, stage in stages.items()
        if name.startswith("ingest@")
        for entry in [*stage["deps"], *stage["outs"]]
        if not entry["path"].startswith("pipeline")
    }


def contract_state(validated: Path, params: Params) -> str:
    """Return "green" if every data set has a receipt of keeping the data contract, else "red"."""
    receipts = [validated / f"{name}.json" for name in params.datasets]
    kept = all(receipt.exists() and json.loads(receipt.read_text())["success"] is True for receipt in receipts)
    return "green" if kept else "red"


def complete_candidates(
    client: "MlflowClient", experiment_id: str, parent_id: str, params: Params, results: Results
) -> dict[str, str]:
    """Return the run of each candidate under the parent, with all its params, curves and validation scores."""
    run_ids = {}
    for name in params.candidates:
        runs = [
            run
            for run in tracking.child_runs(client, experiment_id, parent_id, name)
            if run.info.status in ("RUNNING", "FINISHED")
        ]
        run_id = runs[0].info.run_id if runs else tracking.create_child(client, experiment_id, parent_id, params, name)
        rows = pd.read_csv(results.histories / f"{name}.csv").to_dict(orient="records")
        known = {metric.step for metric in client.get_metric_history(run_id, "val_loss")}
        tracking.log_epochs(client, run_id, [row for row in rows if row["step"] not in known])  # type: ignore[misc]
        scores = json.loads((results.candidates / f"{name}.json").read_text())
        _log_scores(client, run_id, {"validation": scores})
        client.set_terminated(run_id, "FINISHED")
        run_ids[name] = str(run_id)
    return run_ids


def _log_scores(client: "MlflowClient", run_id: str, scores: dict[str, Any]) -> None:
    values = {name: value for name, value in tracking.flatten(scores).items() if value is not None}
    tracking.log_epochs(client, run_id, [{"step": 0, **values}])


def complete_parent(
    client: "MlflowClient", parent_id: str, params: Params, results: Results, metrics: dict[str, Any]
) -> None:
    """Log to the parent run what concerns the repro as a whole: data, params, test scores, plots and the report."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.pandas_dataset import from_pandas

    left_out = {"candidates", *tracking.NO_PART_OF_A_REPRO}
    tracking.log_params(client, parent_id, params.model_dump(mode="json", by_alias=True, exclude=left_out))
    hashes = data_hashes(results.dvc_lock)
    for name, value in {**hashes, "cracks.candidate": metrics["candidate"]}.items():
        client.set_tag(parent_id, name, value)
    _log_scores(client, parent_id, {name: metrics[name] for name in ("split", "test", "tests", "outside")})
    for path in (results.report, results.metrics, results.manifest, results.dvc_lock):
        if path.exists():
            client.log_artifact(parent_id, str(path))
    client.log_dict(parent_id, params.model_dump(mode="json", by_alias=True), "params.yaml")
    client.log_artifacts(parent_id, str(results.plots), "plots")
    manifest = pd.read_parquet(results.manifest)
    with mlflow.start_run(run_id=parent_id):
        for split, rows in manifest.groupby("split"):
            names = "+".join(sorted(rows["dataset"].unique()))
            table = rows[["dataset", "path", "label", "group"]].reset_index(drop=True)
            dataset = from_pandas(table, source=CodeDatasetSource(hashes), name=names, targets="label")
            mlflow.log_input(dataset, context=str(split))


def golden_images(manifest: pd.DataFrame, datasets: Path) -> list[Pixels]:
    """Return a few validation images, uint8 (height, width, 3), the same ones whenever the manifest is the same."""
    chosen = manifest[manifest["split"] == "validation"].sort_values("sha256").groupby("label").head(N_GOLDEN // 2)
    images = LabelledImages(chosen[["dataset", "row", "label", "group"]], datasets)
    return [_middle(images.pixels(position)) for position in range(len(images))]


def _middle(pixels: Pixels) -> Pixels:
    top, left = (max(0, (side - GOLDEN_SIZE_PX) // 2) for side in pixels.shape[:2])
    return pixels[top : top + GOLDEN_SIZE_PX, left : left + GOLDEN_SIZE_PX]


def write_checked_served(classifier: "Classifier", folder: Path, golden: list[Pixels], out: Path) -> None:
    """Write the served form of the model of `folder` to `out`.

    Raises:
        RefusedError: it answers otherwise than the Keras model.
    """
    from pipeline.conversion import write_served

    write_served(classifier.model, golden, out)
    shutil.copyfile(folder / DECISION_FILE, out / DECISION_FILE)
    difference = ServedModel.load(out).golden_difference()
    if difference > MAX_GOLDEN_DIFFERENCE:
        raise RefusedError(
            f"The served form of the model differs from the Keras model by {difference:.2g} in a probability, "
            f"{MAX_GOLDEN_DIFFERENCE:g} is allowed. It is not registered. Look at {folder} on another machine."
        )


def log_model(classifier: "Classifier", beside: Path, run_id: str, name: str) -> str:
    """Log a model to a run, with signature, example, pinned requirements and what is `beside` it; return its URI."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from pipeline.tf import keras

    n_features = classifier.model.output["features"].shape[-1]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(np.float32), (-1,), "probability"),
                TensorSpec(np.dtype(np.float32), (-1, n_features), "features"),
            ]
        ),
    )
    example = np.full((1, EXAMPLE_SIZE_PX, EXAMPLE_SIZE_PX, 3), 128, np.uint8)
    keras.config.disable_interactive_logging()  # MLflow tries the example: a bar over one image
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.tensorflow.log_model(
            classifier.model,
            name=name,
            signature=signature,
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in PINNED],
            extra_files=[str(path) for path in sorted(beside.iterdir())],
        )
    return str(logged.model_uri)


def _rounded(score: float | None) -> str:
    return "none" if score is None else f"{score:.4f}"


def version_with_hash(client: "MlflowClient", name: str, content_hash: str) -> "ModelVersion | None":
    """Return the registered version of this very model, None where there is none."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{HASH_TAG}` = '{content_hash}'")
    return max(found, key=lambda version: int(version.version), default=None)


def register(
    client: "MlflowClient",
    classifier: "Classifier",
    folder: Path,
    results: Results,
    run_id: str,
    name: str,
    tags: dict[str, str],
) -> "ModelVersion":
    """Return the version of this model under `name`, made if it is new.

    Raises:
        RefusedError: its served form answers otherwise than the Keras model.
    """
    import mlflow

    content_hash = classifier.content_hash()
    registered = version_with_hash(client, name, content_hash)
    if registered is not None:
        log.info("The same model is registered already, as version %s", registered.version)
        return registered
    with tempfile.TemporaryDirectory() as scratch:
        manifest = pd.read_parquet(results.manifest)
        golden = golden_images(manifest, results.datasets)
        write_checked_served(classifier, folder, golden, Path(scratch))
        shutil.copy(results.reference, scratch)
        learned_from(manifest).to_parquet(Path(scratch) / LEARNED_FROM_FILE, index=False)
        known = acquaint(
            ServedModel.load(Path(scratch)), manifest, pd.read_parquet(results.predictions), results.datasets
        )
        known.save(Path(scratch) / KNOWN_CONCRETE_FILE)
        uri = log_model(classifier, Path(scratch), run_id, name)
    # The tags come with the version in one call: a crash in between cannot leave a version without its hash.
    return mlflow.register_model(uri, name, tags={HASH_TAG: content_hash, **tags})


def is_registered(out: Path) -> bool:
    """Return whether the store that is set now has the version that `out` (registered.json) speaks of.

    Another store, or a new one, may have a version of that number which is another model: its run differs.

    Raises:
        UnavailableError: the tracking server does not answer.
    """
    written = json.loads(out.read_text(encoding="utf-8"))
    if written["version"] is None:
        return False
    client, _ = tracking.connect()
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_model_version(written["name"], written["version"]).run_id == written["run_id"])
    except MlflowException:
        return False


def run(params: Params, results: Results, out: Path) -> None:
    """Record and register.

    Raises:
        UnavailableError: the tracking server went away; what is there already is found again by the next run.

    """
    name = params.register_as.name
    if in_experiment():
        log.info("This is an experiment: nothing is registered. `dvc exp apply`, then `make run`, registers it.")
        write_json(out, {"name": name, "version": None, "run_id": None})
        return
    client, experiment_id = tracking.connect()
    from mlflow.exceptions import MlflowException

    from pipeline.classifier import Classifier

    metrics = json.loads(results.metrics.read_text())
    best = metrics["candidate"]
    try:
        parent_id = tracking.parent_run(client, experiment_id, params, results.manifest)
        run_ids = complete_candidates(client, experiment_id, parent_id, params, results)
        complete_parent(client, parent_id, params, results, metrics)
        tags = {
            "candidate": best,
            "trained_on": "+".join(metrics["trained_on"]),
            "demo": str(metrics["demo"]).lower(),
            "contract": contract_state(results.validated, params),
            **{f"test_{score}": _rounded(metrics["test"][score]) for score in ("f1", "auroc", "ece")},
            **tracking.code_version(),
            **data_hashes(results.dvc_lock),
        }
        folder = results.models / best
        made = register(client, Classifier.load(folder), folder, results, run_ids[best], name, tags)
        client.set_registered_model_alias(name, ALIAS, made.version)
    except (MlflowException, OSError) as error:
        raise UnavailableError(
            f"The tracking store {tracking.shown_uri()} failed: {tracking.first_line(error)}. Nothing is lost: mend "
            "it and run `dvc repro` again; finished stages are not repeated."
        ) from error
    write_json(out, {"name": name, "version": str(made.version), "run_id": made.run_id})
    log.info("%s version %s has alias %s", name, made.version, ALIAS)


def main() -> None:
    """Run the stage from its command line."""
    parser = stage_parser(__doc__)
    for flag, meaning in {
        "--datasets": "folder with a folder per data set",
        "--validated": "folder of the receipts of validate",
        "--models": "folder with a folder per candidate",
        "--candidates": "folder of the candidates' validation scores",
        "--histories": "folder of the candidates' histories",
        "--manifest": "Parquet file of split",
        "--metrics": "metrics.json of evaluate",
        "--predictions": "Parquet file of evaluate",
        "--plots": "folder of evaluate's curves",
        "--report": "HTML file of evaluate",
        "--reference": "Parquet file of what the best model was trained on",
        "--dvc-lock": "dvc.lock, for the hashes of the data",
        "--out": "JSON file to write",
    }.items():
        parser.add_argument(flag, type=Path, required=True, help=meaning)
    paths = vars(parser.parse_args())
    params, out = load_params(paths.pop("params")), paths.pop("out")
    run(params, Results(**paths), out)


if __name__ == "__main__":
    run_main(main)
