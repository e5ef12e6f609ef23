import multiprocessing
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import CracksError
from pipeline.monitoring.prediction_log import IMAGE_STATISTICS, N_DIMENSIONS, SCHEMA, PredictionLog, embeddings_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def rows(n=3, *, start=NOON, model_version="7", photo="deck"):
    """Rows a minute apart, whose numbers tell them apart."""
    return pd.DataFrame(
        {
            "time": pd.date_range(start, periods=n, freq="min"),
            "model_version": model_version,
            "source": "predict",
            "photo": [f"{photo}-{row}" for row in range(n)],
            "path": [f"/photos/{photo}-{row}.jpg" for row in range(n)],
            "probability": np.linspace(0, 1, n, dtype=np.float32),
            **{look: np.float32(position) for position, look in enumerate(IMAGE_STATISTICS)},
            "embedding": list(np.arange(n * N_DIMENSIONS, dtype=np.float32).reshape(n, N_DIMENSIONS)),
        }
    )


def test_what_was_appended_is_read_back_oldest_first(tmp_path):
    log = PredictionLog(tmp_path / "log")
    log.append(rows(start=NOON + timedelta(days=1), photo="new"))
    log.append(rows(photo="old"))
    read = log.read()
    assert list(read) == SCHEMA.names
    assert read["photo"].tolist() == [f"{name}-{row}" for name in ("old", "new") for row in range(3)]
    assert read["time"].iloc[0] == NOON
    assert np.array_equal(np.stack(read["embedding"].iloc[:3]), np.stack(rows()["embedding"]))
    assert read["probability"].dtype == np.float32


def test_a_log_that_does_not_exist_is_empty_with_all_columns(tmp_path):
    read = PredictionLog(tmp_path / "none").read(since=NOON, model_version="1")
    assert (len(read), list(read)) == (0, SCHEMA.names)


def test_nothing_to_append_writes_no_file(tmp_path):
    PredictionLog(tmp_path).append(rows(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("since_minute", "until_minute", "expected"),
    [(None, None, [0, 1, 2, 3]), (1, None, [1, 2, 3]), (None, 2, [0, 1]), (1, 3, [1, 2]), (4, None, []), (0, 0, [])],
)
def test_reading_takes_since_and_leaves_until(tmp_path, since_minute, until_minute, expected):
    log = PredictionLog(tmp_path)
    for row in range(4):
        log.append(rows(4).iloc[[row]])
    since, until = (
        None if minute is None else NOON + timedelta(minutes=minute) for minute in (since_minute, until_minute)
    )
    assert log.read(since, until)["photo"].tolist() == [f"deck-{row}" for row in expected]


def test_times_of_any_zone_are_kept_as_utc(tmp_path):
    log = PredictionLog(tmp_path)
    eastward = rows(1).assign(time=lambda table: table["time"].dt.tz_convert("Asia/Tokyo"))
    log.append(eastward)
    assert log.read(since=NOON)["time"].tolist() == [NOON]
    assert str(log.read()["time"].dt.tz) == "UTC"


def test_reading_takes_the_rows_of_one_model_alone(tmp_path):
    log = PredictionLog(tmp_path)
    log.append(rows(model_version="6"))
    log.append(rows(2, model_version="7"))
    assert log.read(model_version="7")["model_version"].tolist() == ["7", "7"]


def test_a_path_may_be_missing(tmp_path):
    log = PredictionLog(tmp_path)
    log.append(rows(2).drop(columns="path"))
    assert log.read()["path"].isna().tolist() == [True, True]


@pytest.mark.parametrize("column", ["time", "photo", "probability", "sharpness", "embedding"])
def test_a_missing_column_is_named_and_nothing_is_written(tmp_path, column):
    with pytest.raises((ValueError, KeyError), match=column):
        PredictionLog(tmp_path).append(rows().drop(columns=column))
    assert list(tmp_path.iterdir()) == []


def test_embeddings_of_another_width_are_refused(tmp_path):
    with pytest.raises(ValueError, match="32 numbers"):
        PredictionLog(tmp_path).append(rows(2).assign(embedding=[np.zeros(31)] * 2))


def test_a_foreign_file_in_the_folder_is_named_with_what_to_do(tmp_path):
    (tmp_path / "notes.parquet").write_text("no table")
    with pytest.raises(
        CracksError, match=r"notes\.parquet is not a file of the prediction log: .*Move it out of the folder"
    ):
        PredictionLog(tmp_path).read()


def test_the_oldest_files_go_when_the_log_outgrows_its_limit(tmp_path):
    PredictionLog(tmp_path).append(rows(photo="any"))
    (first,) = tmp_path.iterdir()
    n_bytes = first.stat().st_size
    first.unlink()
    log = PredictionLog(tmp_path, max_mb=3.5 * n_bytes / 1e6)
    for day in (2, 0, 3, 1, 4):
        log.append(rows(start=NOON + timedelta(days=day), photo=f"day{day}"))
    assert log.read()["photo"].str.split("-").str[0].unique().tolist() == ["day2", "day3", "day4"]


def _append_many(folder, writer):
    for turn in range(20):
        PredictionLog(folder).append(rows(2, photo=f"writer{writer}-{turn}"))


def test_many_processes_append_at_once_and_no_row_is_lost(tmp_path):
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=_append_many, args=(tmp_path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    read = PredictionLog(tmp_path).read()
    assert (len(read), read["photo"].nunique()) == (4 * 20 * 2, 4 * 20 * 2)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".parquet"] == []


def test_what_a_killed_writer_left_behind_is_not_read(tmp_path):
    log = PredictionLog(tmp_path)
    log.append(rows(1))
    (whole,) = tmp_path.iterdir()
    (tmp_path / f".{whole.name}.123.partial").write_bytes(whole.read_bytes()[:50])
    assert len(log.read()) == 1


def test_the_log_needs_no_tensorflow():
    code = (
        "import sys, pipeline.monitoring.prediction_log; "
        "print(sorted({'tensorflow', 'keras', 'mlflow'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env=os.environ, cwd=Path(__file__).parent.parent)  # fmt: skip
    assert finished.stdout == "[]\n"


def test_an_embedding_is_the_projected_root_of_the_shares():
    features = np.array([[4.0, 0.0, 0.0], [3.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    axes = embeddings_of(np.eye(3))  # what each feature alone becomes
    assert embeddings_of(features) == pytest.approx(
        np.stack([axes[0], np.sqrt(0.75) * axes[0] - np.sqrt(0.25) * axes[1], np.zeros(32)]), abs=1e-6
    )
    assert embeddings_of(features).dtype == np.float32


def test_the_projection_never_changes():
    """A log outlives the release that wrote it: numbers of NumPy's frozen stream for seed 0."""
    first_draws = [1.764052345967664, 0.4001572083672233, 0.9787379841057392]
    assert embeddings_of(np.ones((1, 1)))[0, :3] == pytest.approx(np.array(first_draws) / np.sqrt(32))


@given(st.integers(0, 2**32 - 1))
def test_distances_are_nearly_kept(seed):
    shares = np.random.default_rng(seed).dirichlet(np.full(500, 0.1), 2)
    true = np.linalg.norm(np.sqrt(shares[0]) - np.sqrt(shares[1]))
    kept = np.linalg.norm(np.subtract(*embeddings_of(shares)))
    assert 0.4 < kept / true < 1.7  # chi of 32 degrees: six standard deviations either way
