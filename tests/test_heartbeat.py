"""The heartbeat of the schedules."""

import pytest

from pipeline.monitoring.heartbeat import heartbeat_age_s, renew_heartbeat


@pytest.fixture(autouse=True)
def in_a_project(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def test_without_a_heartbeat_there_is_no_age():
    assert heartbeat_age_s() is None


def test_the_age_counts_from_the_last_heartbeat():
    renew_heartbeat(now_s=1000.0)
    renew_heartbeat(now_s=1030.0)
    assert heartbeat_age_s(now_s=1042.5) == 12.5


def test_a_clock_that_was_set_back_gives_no_negative_age():
    renew_heartbeat(now_s=1000.0)
    assert heartbeat_age_s(now_s=990.0) == 0
