"""What nobody uses any more is deleted, and nothing else."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from conftest import Project
from toy_project import diamond, toy_project

from pipeline.registry.retention import delete, refused_versions

pytestmark = pytest.mark.slow
NOW = datetime.now(UTC)


@pytest.fixture
def registry(tmp_path):
    """Return a client of a registry with versions 1 refused, 2 refused but with an alias, 3 in production, 4 new."""
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=store, registry_uri=store)  # the process may have another registry set
    client.create_registered_model("cracks")
    for number, state in enumerate(["refused", "refused", "production", None], start=1):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "MLmodel").write_text("a model")
        client.create_model_version("cracks", folder.as_uri(), tags={"state": state} if state else None)
    client.set_registered_model_alias("cracks", "challenger", "2")
    return client


def test_only_a_refused_version_without_an_alias_is_deleted_and_its_files_with_it(registry, tmp_path):
    [found] = refused_versions(registry, "cracks", NOW + timedelta(days=1))
    assert found.version == 1
    delete(registry, found)
    assert not (tmp_path / "1" / "MLmodel").exists()
    assert {version.version for version in registry.search_model_versions("name = 'cracks'")} == {2, 3, 4}
    assert (tmp_path / "2" / "MLmodel").exists()


def test_a_version_that_was_refused_lately_stays(registry):
    assert refused_versions(registry, "cracks", NOW - timedelta(days=1)) == []


def objects(project: Project) -> int:
    return len(list((project.root / ".dvc" / "cache" / "files").rglob("*/*/*")))


def test_the_cache_of_a_data_set_that_nothing_names_goes_when_it_is_confirmed(tmp_path, prefect_api):
    project = toy_project(tmp_path / "project", diamond())
    project.repro()
    in_use = objects(project)
    old = project.root / "old"
    old.write_text("of no commit and not in the workspace")
    assert project.run("dvc", "add", "old").returncode == 0
    old.unlink()
    (project.root / "old.dvc").unlink()
    assert objects(project) == in_use + 1
    left = project.root / "data" / "datasets" / ".demo.99-ab.partial"
    (left / "more").mkdir(parents=True)
    (project.root / "reports" / ".x.json.1-cd.partial").touch()  # being written
    os.utime(left, (0, 0))

    def gc(*arguments: str) -> subprocess.CompletedProcess[str]:
        finished = project.run(sys.executable, "-m", "flows.gc", *arguments, PREFECT_API_URL=prefect_api)
        assert finished.returncode == 0, finished.stderr
        return finished

    listed = gc().stderr
    assert "Nothing was deleted" in listed
    assert [line for line in listed.splitlines() if ".partial" in line] == [str(left)]
    assert objects(project) == in_use + 1
    assert left.exists()
    gc("--delete")
    assert objects(project) == in_use
    assert [path.name for path in project.root.rglob(".*.partial")] == [".x.json.1-cd.partial"]
    assert "Running stage" not in project.repro()


def test_a_file_left_half_written_in_a_folder_left_half_written_is_deleted_with_it(tmp_path, monkeypatch):
    from flows.gc import clean_partial

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder = tmp_path / "data" / ".demo.99-ab.partial"
    folder.mkdir(parents=True)
    (folder / ".x.json.99-cd.partial").touch()
    assert len(clean_partial(NOW + timedelta(days=1), dry_run=False)) == 2
    assert list((tmp_path / "data").iterdir()) == []


def test_runs_of_these_flows_that_ended_before_the_retention_are_deleted_and_others_stay(prefect_api):
    from prefect import flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Completed

    from flows.gc import clean_runs

    with SyncPrefectClient(prefect_api) as client:
        tags = (["cracks"], ["cracks"], ["of another project"])
        ended, going, foreign = (client.create_flow_run(flow(name="any")(lambda: None), tags=each) for each in tags)
        for run in (ended, foreign):
            client.set_flow_run_state(run.id, Completed(), force=True)
        soon = datetime.now(UTC) + timedelta(minutes=1)
        assert clean_runs(client, NOW - timedelta(days=1), dry_run=False) == 0
        assert clean_runs(client, soon, dry_run=True) >= 1
        assert client.read_flow_run(ended.id)
        assert clean_runs(client, soon, dry_run=False) >= 1
        left = {run.id for run in client.read_flow_runs()}
        assert ended.id not in left
        assert foreign.id in left
        assert going.id in left
