"""Scoring thousands of images, some of them broken, with a process that is killed halfway and run again."""

import zipfile

import pandas as pd
import pytest
from tiny_model import write_tiny_model

from benchmarks import batch_scoring
from benchmarks.batch_scoring import map_command, n_redone, predict_command, run_monitored, write_folder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("command_of", "n_files", "path_column"), [(predict_command, 8000, "path"), (map_command, 400, "photo")]
)
def test_a_killed_run_resumes_and_every_file_has_a_row(
    command_of, n_files, path_column, tmp_path, draw_tile, encode, monkeypatch
):
    monkeypatch.setattr(batch_scoring, "POLL_S", 0.02)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for seed in range(50):
            archive.writestr(f"{seed}.jpg", encode(draw_tile(seed)))
    write_tiny_model(tmp_path / "model")
    n_broken = write_folder(tmp_path / "images.zip", n_files, tmp_path / "originals", tmp_path / "images")
    command = command_of(tmp_path / "images", tmp_path, str(tmp_path / "model"))
    killed = run_monitored(command, kill_at=n_files // 4)
    assert not command.result.exists()
    resumed = run_monitored(command)
    assert n_files // 4 <= len(killed.done) * command.images_each < n_files
    assert len(resumed.done) > len(killed.done)
    assert n_redone(command, killed, resumed) == 0
    errors = pd.read_csv(command.result, keep_default_na=False).set_index(path_column)["error"]
    assert len(errors) == errors.index.nunique() == n_files
    assert set(errors[errors != ""].index) == {str(path) for path in (tmp_path / "images").rglob("*-*.jpg")}
    assert (errors != "").sum() == n_broken == n_files // 200
