import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import write_blind_tracer

from pipeline.crack_lines.tracer import tracer_file, tracer_identity
from pipeline.errors import CracksError, UnavailableError
from pipeline.inference.out_of_distribution import OutOfDistributionDetector
from pipeline.registry import tracking
from pipeline.registry.model_lookup import ModelFiles, found_model, locate, model_of, unpacked
from serving.wanted_version import Registry

BATCH = np.full((2, 40, 40, 3), 60, np.uint8)


@pytest.fixture(scope="module")
def folder(dark_is_crack):
    return dark_is_crack


@pytest.fixture
def fetched_to(tmp_path):
    return tmp_path / "fetched"


@pytest.fixture
def registry(tmp_path, monkeypatch, empty_store, folder):
    """A registry with two versions of "cracks", of which version 1 is challenger and version 2 trained on a demo."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets itself; as good as unset
    for name, value in tracking.SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow" / "mlflow.db")
    client, _ = tracking.connect()
    client.create_registered_model("cracks")
    for demo in ("false", "true"):
        client.create_model_version("cracks", str(folder), tags={"demo": demo})
    client.set_registered_model_alias("cracks", "challenger", "1")
    return SimpleNamespace(root=tmp_path, client=client)


def test_a_folder_is_a_model_without_any_registry(folder, monkeypatch, fetched_to):
    monkeypatch.setattr(tracking, "connect", lambda: pytest.fail("the registry was asked"))
    assert locate("cracks", str(folder), fetched_to) == (folder, f"the model in {folder}", str(folder))


@pytest.mark.parametrize(
    ("wanted", "description"),
    [
        ("2", "cracks version 2, trained on drawn images (demo)"),
        ("1", "cracks version 1"),
        ("challenger", "cracks version 1 (challenger)"),
    ],
)
def test_a_registered_model_is_found_by_version_or_alias(registry, wanted, description, fetched_to):
    fetched, said, version = locate("cracks", wanted, fetched_to)
    assert version == description.split()[2].rstrip(",")
    assert said == description
    assert (fetched / "openvino.xml").exists()


def test_the_default_is_production_else_challenger_and_it_says_which(registry, fetched_to):
    assert locate("cracks", None, fetched_to)[1] == "cracks version 1 (challenger)"
    registry.client.set_registered_model_alias("cracks", "production", "1")
    assert locate("cracks", None, fetched_to)[1] == "cracks version 1 (production)"


def test_a_demo_never_answers_unless_it_is_asked_for(registry, fetched_to):
    """The API asks the same function: a demo in production leaves it with the challenger, or the starter."""
    registry.client.set_registered_model_alias("cracks", "production", "2")
    assert locate("cracks", None, fetched_to)[1] == "cracks version 1 (challenger)"
    assert Registry("cracks").wanted().number == "1"
    registry.client.set_registered_model_alias("cracks", "challenger", "2")
    assert locate("cracks", None, fetched_to) == (
        None,
        "the starter model, trained on METU and SDNET2018, because no model of cracks trained on real concrete is "
        "registered yet",
        "starter",
    )
    assert Registry("cracks").wanted() is None
    for alias in ("challenger", "production"):
        said = f"cracks version 2 ({alias}), trained on drawn images (demo)"
        assert locate("cracks", alias, fetched_to / alias)[1] == said


def test_a_store_that_does_not_exist_is_not_made_to_find_out_that_it_is_empty(tmp_path, monkeypatch, fetched_to):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert locate("cracks", None, fetched_to)[2] == "starter"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")  # a person named it: not passed over
    with pytest.raises(CracksError, match="names a database that does not exist"):
        locate("cracks", None, fetched_to)
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_the_starter_where_nothing_is_registered(registry, fetched_to):
    assert locate("other", None, fetched_to)[1].startswith("the starter model")


def test_the_starter_needs_no_registry(monkeypatch, fetched_to):
    monkeypatch.setattr(tracking, "connect", lambda: pytest.fail("the registry was asked"))
    assert locate("cracks", "starter", fetched_to)[1] == "the starter model, trained on METU and SDNET2018"


@pytest.mark.parametrize(
    ("name", "wanted", "named"),
    [
        ("cracks", "3", "'3' of cracks"),
        ("cracks", "champion", "'champion' of cracks"),
        ("cracks", "models/typo", "'models/typo' of cracks"),
        ("other", "1", "'1' of other"),
    ],
)
def test_a_model_that_does_not_exist_is_named_with_how_to_make_one(registry, name, wanted, named, fetched_to):
    with pytest.raises(CracksError, match=rf"no model {named} in sqlite.*Run `make run` first") as caught:
        locate(name, wanted, fetched_to)
    assert caught.value.exit_code == 2


def test_a_version_whose_files_are_gone_is_a_mistake_that_waiting_does_not_mend(registry, fetched_to):
    registry.client.create_model_version("cracks", str(registry.root / "gone"))
    with pytest.raises(
        CracksError, match=r"cracks version 3 cannot be fetched: its files are gone .*make run"
    ) as caught:
        locate("cracks", "3", fetched_to)
    assert caught.value.exit_code == 2


def test_a_production_version_that_was_deleted_is_an_error_and_not_a_reason_for_another_model(registry, fetched_to):
    registry.client.set_registered_model_alias("cracks", "production", "2")
    decisions = registry.client.create_experiment("cracks-decisions")
    registry.client.create_run(decisions, tags={"outcome": "promoted", "version": "1"}, start_time=1)
    registry.client.create_run(decisions, tags={"outcome": "rolled back", "version": "2"}, start_time=2)
    registry.client.delete_model_version("cracks", "2")
    for wanted in (None, "production"):
        with pytest.raises(
            CracksError, match=r"Version 2 of cracks, which was in production, has been deleted"
        ) as caught:
            locate("cracks", wanted, fetched_to)
        assert caught.value.exit_code == 2
        assert "cracks rollback --reason TEXT" in str(caught.value)
    assert locate("cracks", "challenger", fetched_to)[2] == "1"


def test_an_alias_that_a_person_took_away_leaves_the_challenger(registry, fetched_to):
    decisions = registry.client.create_experiment("cracks-decisions")
    registry.client.create_run(decisions, tags={"outcome": "promoted", "version": "2"})
    assert locate("cracks", None, fetched_to)[1] == "cracks version 1 (challenger)"


def test_a_server_that_fails_is_not_taken_for_a_registry_without_the_model(registry, monkeypatch, fetched_to):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_):
        raise MlflowException("connection refused\nand so on")

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(UnavailableError, match=r"failed: connection refused\. Try again"):
        locate("cracks", None, fetched_to)


def test_a_server_that_forbids_asking_has_no_such_model_unless_it_lists_one(registry, monkeypatch, fetched_to):
    """MLflow's sign-in answers so, to all but its administrators, of a model that does not exist."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    def forbid(*_):
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", forbid)
    assert locate("other", None, fetched_to)[2] == "starter"
    with pytest.raises(CracksError, match="refuses the request: Permission denied") as caught:
        locate("cracks", None, fetched_to)
    assert caught.value.exit_code == 2


def test_a_served_form_is_used_as_it_is_and_needs_no_tensorflow(folder):
    code = (
        "import sys; from pipeline.registry.model_lookup import found_model\n"
        f"with found_model('cracks', {str(folder)!r}) as found: found.load()\n"
        "print([name for name in ('tensorflow', 'keras', 'mlflow') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_model_without_a_served_form_is_converted_and_answers_the_same(folder, tmp_path):
    for name in ("model.keras", "decision.json"):
        shutil.copy(folder / name, tmp_path / name)
    with found_model("cracks", str(tmp_path)) as converted, found_model("cracks", str(folder)) as served:
        model = converted.load()
        np.testing.assert_allclose(
            model.outputs(BATCH)["probability"], served.load().outputs(BATCH)["probability"], atol=1e-6
        )
        assert converted.folder != tmp_path
        assert converted.identity() != ""
    assert not converted.folder.exists()
    assert len(model.outputs(BATCH)["probability"]) == 2  # it outlives its files


def test_the_identity_changes_with_the_threshold(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    with found_model("cracks", str(folder)) as one, found_model("cracks", str(tmp_path / "other")) as other:
        assert one.identity() == other.identity()
        (other.folder / "decision.json").write_text('{"threshold": 0.6, "review_from": 0.2, "review_to": 0.8}')
        assert one.identity() != other.identity()


def test_a_model_travels_with_what_it_knows(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    OutOfDistributionDetector(np.zeros(64), np.eye(64), 7.0, ()).save(tmp_path / "other" / "known_concrete.npz")
    write_blind_tracer(tmp_path / "other")
    with found_model("cracks", str(tmp_path / "other")) as found:
        files = ModelFiles.read(found)
        identity = tracer_identity(tracer_file(found.folder))
    with unpacked(files) as elsewhere:
        assert tracer_identity(tracer_file(elsewhere)) == identity
    model = model_of(files)
    assert model.outputs(BATCH)["probability"].shape == (2,)
    assert model.detector.limit == 7.0
    assert model_of(files) is model


def test_a_model_that_is_converted_keeps_what_it_knows(folder, tmp_path):
    for name in ("model.keras", "decision.json"):
        shutil.copy(folder / name, tmp_path / name)
    OutOfDistributionDetector(np.zeros(64), np.eye(64), 7.0, ()).save(tmp_path / "known_concrete.npz")
    with found_model("cracks", str(tmp_path)) as found:
        assert found.folder != tmp_path
        assert found.load().detector.limit == 7.0


def test_a_folder_of_the_registry_has_the_same_model_in_its_own_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "fetched" / "extra_files")
    (tmp_path / "fetched" / "MLmodel").touch()
    OutOfDistributionDetector(np.zeros(64), np.eye(64), 7.0, ()).save(
        tmp_path / "fetched/extra_files/known_concrete.npz"
    )
    with found_model("cracks", str(tmp_path / "fetched")) as found:
        assert found.folder == tmp_path / "fetched" / "extra_files"
        assert found.load().detector.limit == 7.0
        assert found.load().image_size_px == 32


def test_what_a_model_knows_is_optional(folder):
    with found_model("cracks", str(folder)) as found:
        assert found.load().detector is None
        assert model_of(ModelFiles.read(found)).detector is None
