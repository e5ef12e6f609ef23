"""The flows end in a state that says what was decided."""

import pytest
from prefect.testing.utilities import prefect_test_harness
from registry import RULES, make_registry, write_graph, write_params

from flows.promotion import promotion, rollback

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prefect():
    """A Prefect server of its own."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def models(prefect, tmp_path, empty_store, monkeypatch):
    graph = tmp_path / "graph"
    graph.mkdir()
    write_graph(graph)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("DVC_ROOT", "")
    return make_registry(tmp_path / "project", graph, empty_store)


def test_a_flow_ends_as_what_was_decided_and_fails_only_where_something_is_broken(models):
    failed = promotion("7", by="Ada", return_state=True)
    assert (failed.is_failed(), "There is no version '7'" in failed.message) == (True, True)
    first, second = models.add(0.5), models.add(0.5)
    promoted = promotion(first, by="Ada", return_state=True)
    assert (promoted.is_completed(), promoted.name) == (True, "Promoted")
    assert models.production() == first
    again = promotion(first, by="Ada", return_state=True)
    assert (again.is_completed(), again.name) == (True, "Refused")
    write_params(models.root, floors={"f1": 1.0})
    refused = promotion(second, by="Ada", return_state=True)
    assert (refused.is_completed(), refused.name) == (True, "Refused")
    assert refused.message == "version 2: refused, failing: floors"
    write_params(models.root, floors=RULES["floors"], approval="manual")
    assert promotion(second, by="Ada", return_state=True).name == "Pending approval"
    assert models.production() == first
    back = rollback("no reason", by="Ada", return_state=True)
    assert (back.is_failed(), "Nothing was in production before" in back.message) == (True, True)
