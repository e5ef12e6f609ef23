import base64
import json
import shutil
import socket
import sqlite3
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from drawn_data import drawn_files, ingest_files

from pipeline.crack_lines.tracer import load_tracer, tracer_file, tracer_identity
from pipeline.data.images import INVENTORY_FILE, decode
from pipeline.errors import CracksError, RefusedError, UnavailableError
from pipeline.inference import conversion
from pipeline.inference.served import SERVED_FILES, ServedModel
from pipeline.models.calibration import Calibration, Platt, calibrated
from pipeline.models.classifier import Classifier
from pipeline.models.decision import Decision
from pipeline.models.model_files import TRACER_FILE
from pipeline.models.network import build_classifier
from pipeline.models.tf import keras
from pipeline.params import Params, load_params
from pipeline.register import main, run
from pipeline.registry import runs, tracking
from pipeline.registry.mlflow_runs import Results, complete_parent, data_hashes
from pipeline.registry.model_lookup import ModelFiles, found_model, unpacked
from pipeline.registry.versions import NOT_LEFT_OUT_TAG, WORST_LEFT_OUT_TAG, is_registered, worst_left_out
from pipeline.stage import run_main

pytestmark = [
    # MLflow's digest of a table calls pandas in a way that ends with pandas 4.
    pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0:pandas.errors.Pandas4Warning"),
    # MLflow says so of its own types when `mlflow.pyfunc` is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

PARAMS_FILE = Path(__file__).parent.parent / "params.yaml"
PARAMS = load_params(PARAMS_FILE)
PROBE, FINETUNE = "probe-lite0", "finetune-mobilenet"
DECISION = Decision(threshold=0.5, review_from=0.4, review_to=0.6)
SCORES = {
    "n": 4,
    "accuracy": 0.75,
    "f1": 0.8,
    "auroc": None,
    "balanced_accuracy": None,
    "ece": 0.1,
    "threshold": 0.5,
}
METRICS = {
    "demo": True,
    "trained_on": ["demo"],
    "candidate": PROBE,
    "split": {"n_images": 6, "n_groups": 5, "n_copies": 1, "n_excluded": 0, "leaks": 0},
    "test": SCORES,
    "tests": {"demo": SCORES},
    "external": {"bridge": {**SCORES, "f1": 0.3}, "tunnel": SCORES},
    "sources": {
        "scores": {
            "bridge": {**SCORES, "auroc": 0.7},
            "demo/Walls": {**SCORES, "auroc": 0.81},
            "demo/Decks": {**SCORES, "auroc": 0.9},
        },
        "not_measured": {"demo/Roof": "3 cracked images", "tunnel": "2 photos", "demo/Edge": "1 photo"},
        "mean": {"auroc": 0.8033},
        "worst": "bridge",
    },
}
DVC_LOCK = """
schema: '2.0'
stages:
  ingest@demo:
    cmd: any
    deps:
    - {path: data/demo.yaml, hash: md5, md5: aaa, size: 1}
    - {path: pipeline/ingest.py, hash: md5, md5: bbb, size: 1}
    outs:
    - {path: data/datasets/demo, hash: md5, md5: ccc.dir, size: 1}
  split:
    cmd: any
    outs:
    - {path: data/manifest.parquet, hash: md5, md5: ddd, size: 1}
"""
HASHES = {"dvc.demo.source": "aaa data/demo.yaml", "dvc.demo.images": "ccc.dir data/datasets/demo"}


def save_model(folder, *, weight=-1.0):
    """Save an exported graph whose logit is `weight` times the mean of each of red, green and blue."""
    network = keras.Sequential(
        [keras.Input((None, None, 3), name="normalised"), keras.layers.GlobalAveragePooling2D(name="mean")], name="net"
    )
    head = keras.layers.Dense(1, name="head")
    classifier = build_classifier(network, 32, [head])
    head.set_weights([np.full((3, 1), weight), np.zeros(1)])
    folder.mkdir(parents=True, exist_ok=True)
    calibrated(classifier, Calibration((Platt(2.0, -0.5),))).save(folder / "model.keras")
    (folder / "decision.json").write_text(json.dumps(DECISION.as_dict()))


def write_results(root):
    """Write what the stages before `register` leave."""
    results = Results(
        datasets=root / "datasets",
        validated=root / "validated",
        models=root / "models",
        candidates=root / "candidates",
        histories=root / "histories",
        manifest=root / "manifest.parquet",
        scores=root / "scores.json",
        predictions=root / "predictions.parquet",
        plots=root / "plots",
        report=root / "report.html",
        reference=root / "reference.parquet",
        tracer=root / "tracer",
        tracer_metrics=root / "tracer.json",
        dvc_lock=root / "dvc.lock",
    )
    save_model(results.models / PROBE)
    for folder in (results.validated, results.candidates, results.histories, results.plots):
        folder.mkdir()
    (results.validated / "demo.json").write_text(json.dumps({"dataset": "demo", "success": True}))
    for name, n_epochs in ((PROBE, 3), (FINETUNE, 2)):
        (results.candidates / f"{name}.json").write_text(json.dumps({"log_loss": 0.2, **SCORES}))
        steps = range(n_epochs)
        history = pd.DataFrame(
            {"step": steps, "phase": "head", "epoch": steps, "val_loss": [1 / (n + 1) for n in steps]}
        )
        history.to_csv(results.histories / f"{name}.csv", index=False)
    results.datasets.mkdir()
    ingest_files(drawn_files(), results.datasets).rename(results.datasets / "demo")
    inventory = pd.read_parquet(results.datasets / "demo" / INVENTORY_FILE)[["path", "label", "sha256"]]
    sides = np.resize(["train", "validation", "test"], len(inventory))
    manifest = inventory.assign(
        row=range(len(inventory)), split=sides, dataset="demo", photo=None, group=inventory["sha256"]
    )
    manifest = manifest.assign(slice="")
    manifest.to_parquet(results.manifest)
    manifest[manifest["split"] == "test"].assign(probability=0.25).to_parquet(results.predictions)
    results.scores.write_text(json.dumps(METRICS))
    results.report.write_text("<html>")
    results.reference.write_bytes(b"what it was trained on")
    (results.plots / "roc.csv").write_text("fpr,tpr\n0,0\n")
    results.dvc_lock.write_text(DVC_LOCK)
    results.tracer.mkdir()
    for path in (TRACER_FILE, TRACER_FILE.with_suffix(".bin")):
        shutil.copy(path, results.tracer)
    results.tracer_metrics.write_text(json.dumps({"lines": 0.71}))
    return results


def enter(patch, root):
    """Make `root` the project, with no setting of the machine's own."""
    patch.setenv("DVC_ROOT", str(root))
    patch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets itself; as good as unset
    patch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    for name, value in tracking.SETTINGS.items():
        patch.setenv(name, value)
    patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def first(tmp_path_factory, empty_store):
    """A project whose probe is registered in a new store; the first epoch alone had been sent live."""
    root = tmp_path_factory.mktemp("first")
    (root / "mlflow").mkdir()
    shutil.copy(empty_store, root / "mlflow" / "mlflow.db")
    results = write_results(root)
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, root)
        with runs.live_run(PARAMS, results.manifest, PROBE) as report:
            report(0, {"val_loss": 1.0})
        run(PARAMS, results, root / "registered.json")
    return SimpleNamespace(root=root, results=results)


@pytest.fixture
def project(first, tmp_path, monkeypatch):
    """A copy of that project and its store, open."""
    root = tmp_path / "copy"
    shutil.copytree(first.root, root)
    enter(monkeypatch, root)
    client, experiment_id = tracking.connect()
    return SimpleNamespace(
        root=root,
        results=Results(**{name: root / path.name for name, path in vars(first.results).items()}),
        out=root / "registered.json",
        client=client,
        experiment_id=experiment_id,
    )


@pytest.fixture
def fetched(project):
    """The folder of version 1 as the registry gives it."""
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts("models:/cracks/1"))


def versions(project):
    return sorted(int(found.version) for found in project.client.search_model_versions("name = 'cracks'"))


def challenger(project):
    return project.client.get_model_version_by_alias("cracks", "challenger")


def children(project, name):
    parent_id = runs.parent_run(project.client, project.experiment_id, PARAMS, project.results.manifest)
    return runs.child_runs(project.client, project.experiment_id, parent_id, name)


def test_hashes_are_those_of_the_data_and_not_of_the_code(tmp_path):
    (tmp_path / "dvc.lock").write_text(DVC_LOCK)
    assert data_hashes(tmp_path / "dvc.lock", PARAMS) == HASHES
    assert data_hashes(tmp_path / "missing.lock", PARAMS) == {}


def test_hashes_of_a_data_set_that_is_no_longer_in_params_are_left_out(tmp_path):
    (tmp_path / "dvc.lock").write_text(DVC_LOCK.replace("ingest@demo", "ingest@before"))
    assert data_hashes(tmp_path / "dvc.lock", PARAMS) == {}


def test_any_path_and_any_label_can_be_logged(project):
    paths = ("data/archive (1).zip", "../Brücke Süd (2024)/", "a&b,c[d]+#\N{SNOWMAN}.zip", "/absolute//path")
    datasets = {f"d{number}": {"source": path} for number, path in enumerate(paths)}
    datasets["d0"]["labels"] = {"Gerissen & kaputt": "crack", "ganz": "intact"}
    document = yaml.safe_load(PARAMS_FILE.read_text())
    document["datasets"], document["split"]["train_on"] = datasets, ["d0"]
    params = Params.model_validate(document)
    entries = {name: {"deps": [{"path": data["source"], "md5": "aaa"}], "outs": []} for name, data in datasets.items()}
    lock = {"stages": {f"ingest@{name}": entry for name, entry in entries.items()}}
    project.results.dvc_lock.write_text(yaml.safe_dump(lock), encoding="utf-8")
    scores = json.loads(project.results.scores.read_text())
    parent_id = runs.parent_run(project.client, project.experiment_id, params, project.results.manifest)
    complete_parent(project.client, parent_id, params, project.results, scores)
    parent = project.client.get_run(parent_id)
    assert [parent.data.tags[f"dvc.d{n}.source"] for n in range(4)] == [f"aaa {path}" for path in paths]
    assert parent.data.params["datasets.d0.labels"] == "{'Gerissen & kaputt': 'crack', 'ganz': 'intact'}"
    project.client.set_model_version_tag("cracks", "1", "dvc.d1.source", parent.data.tags["dvc.d1.source"])


def test_a_registration_that_fails_leaves_no_run_that_seems_to_go_on(project):
    (project.results.candidates / f"{FINETUNE}.json").write_text("no JSON")
    params = PARAMS.model_copy(update={"decide": PARAMS.decide.model_copy(update={"missed_crack_cost": 9})})
    with pytest.raises(ValueError, match="Expecting value"):
        run(params, project.results, project.out)
    found = reversed(project.client.search_runs([project.experiment_id]))  # the newest of a name last
    states = {run.info.run_name: run.info.status for run in found}
    assert states["demo (demo)"] == states[FINETUNE] == "FAILED"


def test_the_runs_of_an_experiment_end_with_its_training(project, monkeypatch):
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    params = PARAMS.model_copy(update={"decide": PARAMS.decide.model_copy(update={"missed_crack_cost": 9})})
    with runs.live_run(params, project.results.manifest, PROBE) as report:
        report(0, {"val_loss": 1.0})
    run(params, project.results, project.out)
    states = [found.info.status for found in project.client.search_runs([project.experiment_id])]
    assert states == ["FINISHED"] * 5


def test_a_model_whose_files_are_gone_counts_as_not_registered_and_is_registered_anew(project):
    assert is_registered(project.out)
    shutil.rmtree(project.root / "mlflow" / "artifacts")
    assert not is_registered(project.out)
    run(PARAMS, project.results, project.out)
    assert is_registered(project.out)
    assert challenger(project).version == 2


def test_the_store_of_a_project_that_was_copied_reads_and_writes_its_own_files(first, project):
    before = {path for path in first.root.rglob("*") if path.is_file()}
    locations = [project.client.get_experiment(project.experiment_id).artifact_location]
    locations += [found.info.artifact_uri for found in project.client.search_runs([project.experiment_id])]
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        locations += [location for (location,) in store.execute("select artifact_location from logged_models")]
    assert len(locations) == 5
    assert all(location.startswith((project.root / "mlflow" / "artifacts").as_uri()) for location in locations)
    project.client.log_text(project.client.search_runs([project.experiment_id])[0].info.run_id, "new", "new.txt")
    assert {path for path in first.root.rglob("*") if path.is_file()} == before


def test_a_file_of_keras_that_wants_torch_is_no_model_and_says_so(project):
    path = project.results.models / PROBE / "model.keras"
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(contents["config.json"])
    config["config"]["layers"][1] = {
        "module": "keras.layers",
        "class_name": "TorchModuleWrapper",
        "config": {"name": "torch", "module": "gASVAAAA", "trainable": True},
        "registered_name": None,
        "name": config["config"]["layers"][1]["name"],
        "inbound_nodes": config["config"]["layers"][1]["inbound_nodes"],
    }
    contents["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(CracksError, match="contains no model that can be loaded"):
        Classifier.load(path.parent)


def test_in_an_experiment_nothing_is_registered(tmp_path, monkeypatch):
    enter(monkeypatch, tmp_path)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    run(PARAMS, SimpleNamespace(), tmp_path / "registered.json")
    assert json.loads((tmp_path / "registered.json").read_text()) == {"name": "cracks", "version": None, "run_id": None}
    assert [path.name for path in tmp_path.iterdir()] == ["registered.json"]
    assert not is_registered(tmp_path / "registered.json")


def test_a_server_that_is_away_ends_the_stage_with_its_own_code_and_nothing_written(tmp_path, monkeypatch, capsys):
    enter(monkeypatch, tmp_path)
    flags = [
        "params",
        "datasets",
        "validated",
        "models",
        "candidates",
        "histories",
        "manifest",
        "scores",
        "predictions",
        "plots",
        "report",
        "dvc-lock",
        "out",
        "reference",
        "validated",
        "predictions",
        "tracer",
        "tracer-metrics",
    ]
    arguments = [word for flag in flags for word in (f"--{flag}", str(tmp_path / flag))]
    arguments[1] = str(PARAMS_FILE)
    monkeypatch.setattr(sys, "argv", ["register", *arguments])
    with socket.socket() as listener:  # bound, but nobody listens
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(SystemExit, match="4"):
            run_main(main)
        (tmp_path / "registered.json").write_text(json.dumps({"name": "cracks", "version": "1", "run_id": "a"}))
        with pytest.raises(UnavailableError, match="does not answer"):
            is_registered(tmp_path / "registered.json")
    assert "Nothing is lost: start it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_first_model_is_version_1_and_challenger_with_its_lineage(project):
    found = challenger(project)
    (probe_run,) = children(project, PROBE)
    assert json.loads(project.out.read_text()) == {
        "name": "cracks",
        "version": "1",
        "run_id": probe_run.info.run_id,
        "parent_id": probe_run.data.tags["mlflow.parentRunId"],
        "experiment_id": project.experiment_id,
    }
    assert (found.version, found.run_id) == (1, probe_run.info.run_id)
    assert found.tags == {
        "cracks.tracer_hash": tracer_identity(TRACER_FILE),
        "cracks.model_hash": Classifier.load(project.results.models / PROBE).content_hash(),
        "candidate": PROBE,
        "trained_on": "demo",
        "demo": "true",
        "contract": "passed",
        "test_f1": "0.8000",
        "test_auroc": "none",
        "test_ece": "0.1000",
        WORST_LEFT_OUT_TAG: "0.8100 demo/Walls",
        NOT_LEFT_OUT_TAG: "demo/Roof, demo/Edge",
        "tracer_f1": "0.7100",
        **runs.code_version(),
        **HASHES,
    }
    assert is_registered(project.out)


@pytest.mark.slow
def test_the_model_carries_signature_example_and_pinned_requirements(fetched):
    from mlflow.models import Model
    from mlflow.types.schema import AnyType

    model = Model.load(fetched)
    (image,) = model.signature.inputs.inputs
    assert (image.type, image.required) == (AnyType(), True)
    (example,) = model.load_input_example(str(fetched))
    assert decode(base64.b64decode(example)).shape == golden_images(fetched)[0].shape
    packages = ("mlflow", "croniter", "numpy", "openvino", "pandas", "pillow", "pydantic", "pyyaml", "tqdm")
    assert set((fetched / "requirements.txt").read_text().split()) == {f"{name}=={version(name)}" for name in packages}


@pytest.mark.slow
def test_the_registered_model_answers_as_the_local_one_does(project, fetched):
    import mlflow

    batch = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    local = Classifier.load(project.results.models / PROBE)
    expected = np.array(local.model(batch)["probability"])
    registered = Classifier.load(fetched)
    assert (registered.content_hash(), registered.decision) == (local.content_hash(), DECISION)
    np.testing.assert_array_equal(registered.model(batch)["probability"], expected)
    served = mlflow.pyfunc.load_model(str(fetched)).predict(batch)
    np.testing.assert_allclose(served["probability"], expected, atol=1e-6)


def golden_images(fetched):
    """The golden images of a model."""
    with np.load(fetched / "artifacts/served/golden.npz") as arrays:
        return [arrays[f"image_{number}"] for number in range(len(arrays["probabilities"]))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_epochs"), [(PROBE, 3), (FINETUNE, 2)])
def test_curves_that_were_not_sent_live_are_completed_from_files(project, name, n_epochs):
    (found,) = children(project, name)
    history = project.client.get_metric_history(found.info.run_id, "val_loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(n, 1 / (n + 1)) for n in range(n_epochs)]
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "0"
    assert found.data.metrics["validation.log_loss"] == 0.2
    assert "validation.auroc" not in found.data.metrics


@pytest.mark.slow
def test_the_parent_has_what_concerns_the_repro_as_a_whole(project):
    parent_id = runs.parent_run(project.client, project.experiment_id, PARAMS, project.results.manifest)
    parent = project.client.get_run(parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["split.fractions.train"] == "0.6"
    assert parent.data.tags["dvc.demo.images"] == HASHES["dvc.demo.images"]
    expected = {"test.f1": 0.8, "external.bridge.f1": 0.3, "tracer.f1": 0.71, "split.leaks": 0}
    expected |= {"source_auroc_worst": 0.7, "source_auroc_mean": 0.8033}
    assert {name: parent.data.metrics[name] for name in expected} == expected
    names = {item.path for folder in (None, "plots") for item in project.client.list_artifacts(parent_id, folder)}
    assert names == {
        "report.html",
        "scores.json",
        "manifest.parquet",
        "dvc.lock",
        "params.yaml",
        "plots",
        "plots/roc.csv",
    }
    inputs = {tag.value: item.dataset.name for item in parent.inputs.dataset_inputs for tag in item.tags}
    assert inputs == {"train": "demo", "validation": "demo", "test": "demo"}


@pytest.mark.slow
def test_the_same_model_makes_no_second_version_but_gets_the_alias_back_and_what_was_measured_since(project):
    assert worst_left_out(challenger(project).tags) == {"demo/Walls": 0.81}  # the worst but for external test sets
    project.out.unlink()
    project.client.delete_registered_model_alias("cracks", "challenger")
    project.client.delete_model_version_tag("cracks", "1", WORST_LEFT_OUT_TAG)  # as if it had not been measured then
    run(PARAMS, project.results, project.out)
    assert worst_left_out(challenger(project).tags) == {"demo/Walls": 0.81}
    assert versions(project) == [1]
    assert challenger(project).version == 1
    assert json.loads(project.out.read_text())["version"] == "1"
    (probe_run,) = children(project, PROBE)
    assert len(project.client.get_metric_history(probe_run.info.run_id, "val_loss")) == 3


@pytest.mark.slow
def test_another_model_is_the_next_version_and_the_former_one_can_come_back(project):
    save_model(project.results.models / PROBE, weight=-2.0)
    run(PARAMS, project.results, project.out)
    assert versions(project) == [1, 2]
    assert challenger(project).version == 2
    assert json.loads(project.out.read_text())["version"] == "2"
    save_model(project.results.models / PROBE)
    run(PARAMS, project.results, project.out)
    assert versions(project) == [1, 2]
    assert challenger(project).version == 1


@pytest.mark.slow
def test_a_model_with_another_tracer_is_another_version_which_has_it(project, fetched, tmp_path):
    weights = project.results.tracer / "tracer.bin"
    content = bytearray(weights.read_bytes())
    content[-2:] = b"\0\0"
    weights.write_bytes(content)
    run(PARAMS, project.results, project.out)
    assert versions(project) == [1, 2]
    other = Path(mlflow.artifacts.download_artifacts("models:/cracks/2", dst_path=tmp_path / "other"))
    assert tracer_identity(tracer_file(fetched)) == tracer_identity(TRACER_FILE)
    assert tracer_identity(tracer_file(other)) == tracer_identity(project.results.tracer / "tracer.xml")
    with found_model("cracks", "2") as found:
        assert tracer_file(found.folder).read_bytes() == tracer_file(other).read_bytes()
        load_tracer(found.folder)
    project.results.tracer.joinpath("tracer.xml").write_text("no graph")
    with pytest.raises(CracksError, match=r"tracer.xml is no tracer of crack lines: .* Fetch the model again"):
        run(PARAMS, project.results, project.out)
    assert versions(project) == [1, 2]


def change_a_byte(weights):
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


def test_a_tracer_that_has_changed_in_the_store_is_noticed_when_it_is_loaded(project):
    (weights,) = (project.root / "mlflow" / "artifacts").rglob("tracer/tracer.bin")
    for damage in (change_a_byte, Path.unlink, lambda weights: shutil.rmtree(weights.parent)):
        damage(weights)
        with found_model("cracks", "1") as found, unpacked(ModelFiles.read(found)) as on_worker:
            for folder in (found.folder, on_worker):
                with pytest.raises(CracksError, match=r"tracer.xml is no tracer of crack lines: .* Fetch the model ag"):
                    load_tracer(folder)


@pytest.mark.slow
def test_a_version_of_that_number_in_another_store_is_another_model(project):
    written = json.loads(project.out.read_text())
    for change in ({"run_id": "0" * 32}, {"version": "7"}, {"name": "other"}):
        project.out.write_text(json.dumps(written | change))
        assert not is_registered(project.out)


def test_the_registered_model_can_be_served_and_answers_as_the_keras_model_does(project):
    fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{PARAMS.register_as.name}/1"))
    served, keras_model = ServedModel.load(fetched), Classifier.load(fetched).model
    assert served.decision == DECISION
    assert served.image_size_px == 32
    batch = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), np.uint8)
    expected, outputs = keras_model(batch), served.outputs(batch)
    assert outputs.keys() == {"probability", "features"}
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)
    assert served.golden_difference() < 1e-5


def test_a_model_whose_served_form_answers_otherwise_is_not_registered(project, monkeypatch):
    def write_another(classifier, golden, folder):
        write_served(classifier, [255 - image for image in golden], folder)
        with np.load(folder / "golden.npz") as arrays:
            images = {f"image_{number}": image for number, image in enumerate(golden)}
            np.savez(folder / "golden.npz", probabilities=arrays["probabilities"], **images)

    write_served = conversion.write_served
    monkeypatch.setattr(conversion, "write_served", write_another)
    save_model(project.results.models / PROBE, weight=-3.0)
    with pytest.raises(RefusedError, match="differs from the Keras model"):
        run(PARAMS, project.results, project.out)
    assert len(project.client.search_model_versions()) == 1


@pytest.mark.parametrize("content", [b"not this", b"PK\3\4, the start of a zip"])
@pytest.mark.parametrize("file", SERVED_FILES)
def test_a_folder_with_a_missing_or_broken_file_is_no_model_and_the_message_says_what_to_do(
    project, tmp_path, file, content
):
    fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{PARAMS.register_as.name}/1", dst_path=tmp_path / "m"))
    (fetched / "artifacts/served" / file).write_bytes(content)
    with pytest.raises(CracksError, match=r"Fetch|fetch"):
        ServedModel.load(fetched).golden_difference()
    (fetched / "artifacts/served" / file).unlink()
    with pytest.raises(CracksError, match=f"{file} is missing"):
        ServedModel.load(fetched)
