"""The server and a real registry: aliases move under load, processes are killed, the registry goes away."""

import threading
import time
from itertools import cycle, islice

import numpy as np
import pandas as pd
import pytest
from api_server import Server
from tiny_model import write_tiny_model

from pipeline.data.images import PackedImages
from serving.wanted_version import Registry

NAME = "cracks"
POLL_S = 2
N_MOVES, N_CLIENTS = 10, 8
MIDDLES = {"1": 90.0, "2": 128.0, "3": 160.0}  # each version answers otherwise


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return (URI, client) of a store with three versions, none in production, the third with wrong golden answers."""
    from mlflow import MlflowClient

    root = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment(NAME, artifact_location=(root / "artifacts").as_uri())
    client.create_registered_model(NAME)
    for number, middle in MIDDLES.items():
        folder = root / f"model-{number}"
        write_tiny_model(folder / "extra_files", middle, golden_error=0.1 if number == "3" else 0.0)
        (folder / "MLmodel").write_text("flavors: {}\n")
        run = client.create_run(experiment)
        client.log_artifacts(run.info.run_id, str(folder), "model")
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version(NAME, source, run.info.run_id, tags={"trained_on": "metu", "demo": "false"})
    client.set_registered_model_alias(NAME, "challenger", "3")
    return uri, client


@pytest.fixture
def promote(store):
    """Return a function that moves the alias; at the end there is none."""
    _, client = store
    yield lambda number: client.set_registered_model_alias(NAME, "production", number)
    client.delete_registered_model_alias(NAME, "production")


def version_of(client):
    return client.get("/v1/model").json().get("version")


@pytest.mark.slow
def test_the_challenger_is_wanted_until_one_is_in_production(store, promote, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[0])
    registry = Registry(NAME)
    assert str(registry.wanted()) == (
        "cracks version 3 (challenger, because none of real concrete is in production yet)"
    )
    promote("1")
    assert str(registry.wanted()) == "cracks version 1 (production)"
    assert Registry("another").wanted() is None


def test_a_store_that_does_not_exist_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert Registry(NAME).wanted() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_no_request_fails_and_every_answer_is_of_a_version_in_production_while_the_alias_moves(
    store, promote, tmp_path, encode
):
    uri, _ = store
    content = encode(np.full((64, 64, 3), 128, np.uint8), "PNG")
    moves = [(0.0, 0.0, "1")]  # (start, when the server was seen with it, version)
    answers = []  # (start, end, status, version, probability)
    stopping = threading.Event()

    def ask(server):
        with server.client() as client:
            while not stopping.is_set():
                started_s = time.monotonic()
                answer = client.post("/v1/predict", files={"files": ("a.png", content)})
                body = answer.json()
                probability = body["predictions"][0]["probability"] if answer.status_code == 200 else None
                ended_s = time.monotonic()
                answers.append((started_s, ended_s, answer.status_code, body.get("model_version"), probability))

    promote("1")
    with Server(tmp_path, registry=uri, poll_s=POLL_S) as server:
        loading_s = server.wait_until_ready()  # includes the start
        clients = [threading.Thread(target=ask, args=(server,)) for _ in range(N_CLIENTS)]
        for client in clients:
            client.start()
        for number in islice(cycle("21"), N_MOVES):
            before_s = time.monotonic()
            promote(number)
            server.wait_until(lambda client, number=number: version_of(client) == number)
            moves.append((before_s, time.monotonic(), number))
        stopping.set()
        for client in clients:
            client.join()

    assert {status for _, _, status, _, _ in answers} == {200}
    assert {version for *_, version, _ in answers} == {"1", "2"}
    # A version may answer from the beginning of the move to it until the next one is noticed and loaded, and not after
    # the server was seen with that one.
    next_moves = [*moves[1:], (float("inf"), float("inf"), "")]
    spans = [
        (start_s, min(seen_s, next_s + POLL_S + loading_s), number)
        for (start_s, _, number), (next_s, seen_s, _) in zip(moves, next_moves, strict=True)
    ]
    for started_s, ended_s, _, version, probability in answers:
        assert any(number == version and start_s <= ended_s and started_s <= end_s for start_s, end_s, number in spans)
        assert probability == pytest.approx(1 / (1 + np.exp((128 - MIDDLES[version]) / 20)), abs=1e-4)
    assert len(answers) > 100


@pytest.mark.slow
def test_a_broken_version_is_refused_and_the_old_one_answers(store, promote, tmp_path, encode):
    promote("2")
    with Server(tmp_path, registry=store[0], poll_s=POLL_S) as server:
        server.wait_until_ready()
        promote("3")
        server.wait_until(lambda client: client.get("/v1/model").json()["refused"] == "3")
        with server.client() as client:
            assert version_of(client) == "2"
        assert "cracks version 3 (production) is refused: on its golden images" in server.log()


@pytest.mark.slow
def test_killed_and_started_without_the_registry_it_serves_within_five_seconds(store, promote, tmp_path):
    promote("2")
    server = Server(tmp_path, registry=store[0])
    server.start()
    server.wait_until_ready()
    server.kill()
    again = Server(tmp_path, registry="http://127.0.0.1:9")  # nobody listens there
    with again:
        assert again.wait_until_ready() < 5
        with again.client() as client:
            assert version_of(client) == "2"


@pytest.mark.slow
def test_a_registered_model_is_served_with_the_scores_of_its_evaluation(project, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{project.root}/mlflow/mlflow.db"
    MlflowClient(tracking_uri=uri, registry_uri=uri).set_model_version_tag(NAME, "1", "demo", "false")
    predictions = pd.read_parquet(project.root / "reports" / "predictions.parquet")
    rows = predictions[predictions["split"] == "test"].head(6)
    packed = PackedImages(project.root / "data" / "datasets" / "demo")
    files = [("files", ("a.jpg", packed.content(int(row)))) for row in rows["row"]]
    with Server(tmp_path, registry=uri) as server:
        server.wait_until_ready()
        with server.client() as client:
            model = client.get("/v1/model").json()
            answer = client.post("/v1/predict", files=files).json()
    assert model["description"] == ("cracks version 1 (challenger, because none of real concrete is in production yet)")
    assert [found["probability"] for found in answer["predictions"]] == pytest.approx(
        rows["probability"].tolist(), abs=1e-4
    )
