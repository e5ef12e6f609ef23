import re
from types import SimpleNamespace

import pytest

from pipeline.monitoring import heartbeat
from serving.prometheus_metrics import Metrics


@pytest.fixture
def metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return Metrics(SimpleNamespace(current=None, is_registry_unavailable=False, n_swaps=0, n_refusals=0))


def test_the_age_of_the_heartbeat_of_the_schedules_is_a_metric(metrics):
    heartbeat.renew_heartbeat(now_s=0)
    text = metrics.text().decode()
    assert float(re.search(r"^cracks_schedules_heartbeat_age_seconds ([\d.e+]+)$", text, re.MULTILINE)[1]) > 1e9


def test_there_is_no_heartbeat_metric_where_schedules_never_ran(metrics):
    assert "heartbeat" not in metrics.text().decode()
