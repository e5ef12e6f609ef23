"""Where the project is, and whether this process is part of an experiment."""

from pipeline.project import in_experiment, project_root


def test_the_root_is_the_one_of_dvc_in_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", "/of/the/project")
    monkeypatch.chdir(tmp_path)
    assert str(project_root()) == "/of/the/project"


def test_without_dvc_the_root_is_the_nearest_folder_above_that_is_a_project(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "down")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert project_root() == tmp_path
    (tmp_path / ".dvc").rmdir()
    assert project_root() == tmp_path / "deep" / "down"


def test_an_experiment_is_recognised_by_its_baseline(monkeypatch):
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    assert not in_experiment()
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    assert in_experiment()
