"""The API as a client sees it: answers, problems, limits, headers."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
from api_server import ROOT, Server
from PIL import ExifTags, Image, ImageDraw
from tiny_model import DECISION, probability_of, write_tiny_model

from pipeline.data.reviews import REVIEWS_FILE, read_reviews
from pipeline.data.sources import find_images
from pipeline.models.decision import DECISION_FILE
from pipeline.monitoring.labelling import export
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.project import LOG_FOLDER

PROBLEM = "application/problem+json"
# Training libraries, and what only they need: the image of the API has none of them.
NOT_IN_THE_IMAGE = (
    "tensorflow", "keras", "sklearn", "matplotlib", "jinja2", "distributed", "great_expectations", "prefect",
    "dvc", "faiss", "psutil",
)  # fmt: skip


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starter")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(starter, tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server"), starter=starter, max_body_mb=2, max_files=5) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def grey(encode):
    """Return a function that gives the bytes of a plain picture as PNG."""
    return lambda level, width=40, height=30: encode(np.full((height, width, 3), level, np.uint8), "PNG")


def predict(client, *contents, **query):
    return client.post("/v1/predict", files=[("files", (f"{n}.png", c)) for n, c in enumerate(contents)], params=query)


def test_each_file_gets_its_probability_and_label_in_order(client, grey):
    answer = predict(client, grey(40), grey(220), grey(128))
    assert answer.status_code == 200
    assert answer.json()["model_version"] == "0"
    found = answer.json()["predictions"]
    assert [row["file"] for row in found] == ["0.png", "1.png", "2.png"]
    assert [row["label"] for row in found] == ["crack", "intact", "review"]
    expected = [probability_of(np.array(level)) for level in (40, 220, 128)]
    assert [row["probability"] for row in found] == pytest.approx(expected, abs=1e-5)
    assert "overlay" not in found[0]


def test_probabilities_are_corrected_for_a_stated_share_of_cracks_and_the_answer_says_so(client, grey):
    answer = predict(client, grey(40), grey(128), prevalence=0.1).json()
    assert answer["prevalence"] == 0.1
    sure, middle = answer["predictions"]
    assert middle["probability"] == pytest.approx(0.1, abs=1e-5)  # of 0.5, at odds of 1 to 9
    assert (middle["label"], answer["assumed_prevalence"], sure["label"]) == ("intact", 0.5, "crack")
    answer = client.post("/v1/map", files={"file": grey(128, 40, 40)}, params={"prevalence": 0.1}).json()
    assert (answer["prevalence"], [tile["label"] for tile in answer["tiles"]]) == (0.1, ["intact"])
    assert answer["tiles"][0]["probability"] == pytest.approx(0.1, abs=1e-5)
    assert any("corrected for 10 % of the tiles cracked, as stated; by itself the model assumes 50 %" in note
               for note in answer["notes"])  # fmt: skip
    assert "prevalence" not in predict(client, grey(40)).json()


@pytest.mark.parametrize("prevalence", ["0", "1", "-0.5", "nan", "many"])
def test_a_share_of_cracks_that_is_none_or_all_or_no_share_is_refused_with_words(client, grey, prevalence):
    for answer in (
        predict(client, grey(40), prevalence=prevalence),
        client.post("/v1/map", files={"file": grey(40)}, params={"prevalence": prevalence}),
    ):
        assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)
        assert answer.json()["errors"][0].startswith("query.prevalence: Input should be")


def test_a_model_of_which_the_assumed_share_of_cracks_is_not_known_is_not_corrected(tmp_path, grey):
    write_tiny_model(tmp_path / "starter")
    before = {"threshold": 0.5, "review_from": 0.2, "review_to": 0.8}
    (tmp_path / "starter" / DECISION_FILE).write_text(json.dumps(before))
    with Server(tmp_path / "server", starter=tmp_path / "starter") as server:
        server.wait_until_ready()
        with server.client() as client:
            for answer in (
                predict(client, grey(40), prevalence=0.1),
                client.post("/v1/map", files={"file": grey(40, 40, 40)}, params={"prevalence": 0.1}),
            ):
                assert answer.status_code == 422
                assert "It is not recorded what share of cracks this model assumes" in answer.json()["detail"]
            assert predict(client, grey(40)).status_code == 200


def test_the_occlusion_overlay_of_a_dark_corner_is_evidence_for_a_crack(client, encode):
    pixels = np.full((70, 70, 3), 200, np.uint8)
    pixels[:10, :10] = 0
    [found] = predict(client, encode(pixels, "PNG"), explain=True).json()["predictions"]
    overlay = np.array(found["overlay"]["logits"])
    assert overlay.shape == (7, 7)
    assert overlay[0, 0] == overlay.max() > 0
    assert found["overlay"]["image"].startswith("data:image/png;base64,")


def test_a_photo_is_answered_upright(client, encode):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(np.full((300, 600, 3), 90, np.uint8), "JPEG", exif=exif)
    answer = client.post("/v1/map", files={"file": ("a.jpg", content)}).json()
    assert (answer["width"], answer["height"]) == (300, 600)


def test_the_model_is_named_with_its_limits(client):
    answer = client.get("/v1/model").json()
    assert answer["threshold"] == DECISION.threshold
    assert answer["description"] == (
        "the starter model, trained on METU and SDNET2018, because no model trained on real concrete is registered yet"
    )
    assert (answer["max_body_mb"], answer["max_files"], answer["refused"]) == (2, 5, None)


def test_a_file_that_is_not_an_image_refuses_the_request_with_a_reason(client, grey):
    answer = predict(client, grey(40), b"text", grey(40)[:60])
    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert (problem["status"], problem["title"]) == (422, HTTPStatus(422).phrase)
    assert problem["errors"][0] == "1.png: not an image"


def test_an_image_larger_than_allowed_is_refused_by_its_header(client, encode):
    content = encode(Image.new("1", (2001, 2000)), "PNG")
    [line] = predict(client, content).json()["errors"]
    assert line == (
        "0.png: 2001 x 2000 px is more than 4 megapixels. "
        "Divide it, or have serve.max_image_megapixels or serve.max_photo_megapixels raised"
    )


def test_too_many_files_are_refused(client, grey):
    answer = predict(client, *[grey(40)] * 6)
    assert (answer.status_code, answer.json()["detail"]) == (413, "6 files are more than 5. Split the request.")


@pytest.mark.parametrize("says_its_length", [True, False])
def test_a_body_larger_than_allowed_is_refused(client, says_its_length):
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + bytes(2_000_001)
    content = body if says_its_length else iter([body[:1_500_000], body[1_500_000:]])
    answer = client.post("/v1/predict", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
    assert answer.json()["detail"] == "The request is larger than 2 MB. Send fewer files at once."


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/none", 404),
        ("GET", "/v1/predict", 405),
        ("POST", "/v1/predict", 422),
        ("GET", "/static/../app.py", 404),
    ],
)
def test_what_does_not_exist_is_a_problem_too(client, method, path, status):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert str(ROOT) not in answer.text


def test_every_answer_has_the_security_headers(client):
    for path in ("/", "/static/page.js", "/healthz", "/v1/none"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_the_page_loads_nothing_from_other_sites(client):
    for path in (ROOT / "serving" / "static").iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|eval\(|innerHTML", text), path
        assert client.get(f"/static/{path.name}").status_code == 200


def test_health_readiness_and_metrics_tell_the_state(client, grey):
    assert client.get("/healthz").text == "alive\n"
    assert client.get("/readyz").text.startswith("serving the starter model")
    predict(client, grey(40))
    text = client.get("/metrics").text
    assert 'cracks_model{name="starter",version="0"} 1.0' in text
    assert float(re.search(r'cracks_images_total{label="crack"} (\S+)', text)[1]) >= 1
    assert 'cracks_requests_total{method="POST",route="/v1/predict",status="200"}' in text


def test_openapi_describes_what_is_answered(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/predict", "/v1/map", "/v1/model", "/v1/reviews", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    assert PROBLEM in schema["paths"]["/v1/predict"]["post"]["responses"]["422"]["content"]
    assert "ProblemDetails" in schema["components"]["schemas"]


def test_a_page_of_another_site_gets_no_answer_and_no_name_leads_here(client, grey):
    form = {"files": ("a.png", grey(40))}
    for headers, status in (
        ({}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 421),
    ):
        answer = client.post("/v1/predict", files=form, headers=headers)
        assert answer.status_code == status, answer.text
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421


def review(client, content, tiles, photo="deck 1.jpg", **changes):
    reviews = {"reviewer": "A. Reviewer", "model_version": "7", "tiles": tiles} | changes
    return client.post("/v1/reviews", files={"files": (photo, content)}, data={"reviews": json.dumps(reviews)})


def test_reviews_become_a_batch_with_exactly_the_pixels_of_the_photo(client, draw_tile, encode):
    pixels = draw_tile(0, size_px=128)
    tiles = [{"file": 0, "x": 64, "y": 32, "size": 64, "label": "crack"}]
    answer = review(client, encode(pixels, "PNG"), tiles)
    assert answer.status_code == 200
    assert re.search(r'filename="reviews-\d{8}T\d{6}Z-[0-9a-f]{8}.zip"', answer.headers["content-disposition"])
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        table, name = archive.namelist()
        assert name.startswith("crack/deck_1-64-32-")
        np.testing.assert_array_equal(np.asarray(Image.open(archive.open(name))), pixels[32:96, 64:128])
        lines = archive.read(table).decode().splitlines()
    assert lines[0] == "path,label,reviewer,time,sha256,photo,model_version"
    assert lines[1].startswith(f"{name},crack,A. Reviewer,20")
    assert lines[1].endswith(",deck 1.jpg,7")


@pytest.mark.parametrize(("name", "suffix"), [("0007-a.JPG", ".JPG"), ("a.heic", ".jpg")])
def test_the_review_of_a_whole_file_has_its_bytes_so_that_it_corrects_the_label_of_that_image(
    client, draw_tile, encode, name, suffix
):
    content = encode(draw_tile(0), quality=70)
    answer = review(client, content, [{"file": 0, "x": 0, "y": 0, "size": 64, "label": "intact"}], photo=name)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        table, image = archive.namelist()
        assert archive.read(image) == content
        assert list(read_reviews(archive.read(table), "batch")) == [hashlib.sha256(content).hexdigest()]
    assert Path(image).suffix == suffix


def test_the_table_of_reviews_has_no_formula_and_gives_back_the_name_of_the_photo(client, draw_tile, encode):
    tiles = [{"file": 0, "x": 0, "y": 0, "size": 64, "label": "crack"}]
    answer = review(client, encode(draw_tile(0), "PNG"), tiles, photo="=cmd\u202egpj")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        table = archive.read(REVIEWS_FILE)
    assert table.decode().splitlines()[1].endswith(r",'=cmd\u202egpj,7")
    [verdict] = read_reviews(table, "batch").values()
    assert verdict.review.photo == r"=cmd\u202egpj"


def mapped_lines(client, encode):
    """Return the lines that `/v1/map` finds in a dark photo with a crack, and the photo."""
    grey = Image.fromarray(np.random.default_rng(0).normal(80, 4, (256, 320)).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(grey).line([(30, 40), (150, 120), (290, 200)], 15, width=6, joint="curve")
    photo = encode(grey.convert("RGB"), "PNG")
    answer = client.post("/v1/map?mm_per_px=0.1", files={"file": ("deck.png", photo)})
    assert answer.status_code == 200, answer.text
    return answer.json(), photo


def test_a_map_has_the_lines_of_its_cracks_and_decisions_about_them_come_back_as_geojson(client, encode):
    answer, photo = mapped_lines(client, encode)
    line = answer["lines"][0]
    assert line["id"] == 1
    assert line["length_mm"] == pytest.approx(line["length_px"] / 10, abs=0.1)
    near = [abs(y - (40 + (x - 30) * 160 / 260)) for x, y in line["points"] if 40 < x < 280]
    assert max(near) < 12
    assert any(tile["has_line"] for tile in answer["tiles"])
    assert any("no line is no proof" in note for note in answer["notes"])
    decisions = [line | {"file": 0, "decision": "rejected"}]
    exported = review(client, photo, [], lines=decisions)
    assert exported.status_code == 200, exported.text
    with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
        assert archive.namelist() == [REVIEWS_FILE, "lines.geojson"]
        [feature] = json.loads(archive.read("lines.geojson"))["features"]
    assert feature["geometry"] == {"type": "LineString", "coordinates": line["points"]}
    assert feature["properties"]["decision"] == "rejected"
    assert (feature["properties"]["reviewer"], feature["properties"]["photo"]) == ("A. Reviewer", "deck 1.jpg")
    assert feature["properties"]["width"] == line["width"]
    for change in (
        {"file": 1}, {"decision": "perhaps"}, {"points": [[0, 0]]}, {"points": [[0, 0], [1e308, 0]]}, {"extra": 1},
    ):  # fmt: skip
        assert review(client, photo, [], lines=[decisions[0] | change]).status_code == 422
    hidden = review(client, photo, [], lines=[decisions[0] | {"width": "9 \u202emm"}])
    with zipfile.ZipFile(io.BytesIO(hidden.content)) as archive:
        [feature] = json.loads(archive.read("lines.geojson"))["features"]
    assert feature["properties"]["width"] == r"9 \u202emm"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"tiles": [{"file": 0, "x": 100, "y": 0, "size": 64, "label": "crack"}]},
            "lies outside deck 1.jpg, 128 x 128 px",
        ),
        ({"tiles": [{"file": 1, "x": 0, "y": 0, "size": 64, "label": "crack"}]}, "not among the 1 sent"),
        ({"reviewer": "=1+1"}, "reviewer"),
        ({"tiles": [{"file": 0, "x": 0, "y": 0, "size": 4096, "label": "crack"}] * 20}, "megapixels, more than"),
        ({"reviewer": "  "}, "reviewer"),
        ({"tiles": []}, "tiles"),
        ({"tiles": [{"file": 0, "x": 0, "y": 0, "size": 64, "label": "perhaps"}]}, "label"),
    ],
)
def test_invalid_reviews_are_refused_with_a_reason(client, draw_tile, encode, change, words):
    answer = review(client, encode(draw_tile(0, size_px=128), "PNG"), **({"tiles": []} | change))
    assert answer.status_code == (413 if "megapixels" in words else 422)
    assert words in answer.text


def test_the_process_that_serves_has_no_training_library(server, client, grey):
    predict(client, grey(40), explain=True)
    blocked = "for name in {}.split(): sys.modules[name] = None".format(repr(" ".join(NOT_IN_THE_IMAGE)))
    subprocess.run([sys.executable, "-c", f"import sys\n{blocked}\nimport serving.__main__"], cwd=ROOT, check=True)
    loaded_files = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "site-packages/tensorflow/" not in loaded_files
    assert "site-packages/openvino/" in loaded_files


def test_without_the_key_nothing_is_answered(starter, tmp_path, grey):
    with Server(tmp_path, starter=starter, api_key="a secret") as server:
        server.wait_until_ready()
        with server.client() as client:
            refused = predict(client, grey(40))
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get("/v1/model", headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get("/v1/model", headers={"Authorization": "Bearer a secret"}).status_code == 200
            assert client.get("/").status_code == 200
        assert "a secret" not in server.log()


def test_a_request_above_the_limit_gets_429_with_retry_after(starter, tmp_path, grey):
    with Server(tmp_path, starter=starter, max_requests=1) as server:
        server.wait_until_ready()
        answers = []

        def ask(photo):
            with server.client() as client:
                while not any(answer.status_code == 429 for answer in answers) and len(answers) < 200:
                    answers.append(client.post("/v1/map", files={"file": ("a.png", photo)}))

        asking = [threading.Thread(target=ask, args=(grey(40, 2000, 1500),)) for _ in range(4)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert (refused.headers["retry-after"], refused.headers["content-type"]) == ("1", PROBLEM)
        with server.client() as client:
            assert predict(client, grey(40)).status_code == 200


def test_a_request_that_takes_too_long_is_ended(starter, tmp_path):
    with Server(tmp_path, starter=starter, max_seconds=0.3) as server:
        server.wait_until_ready()

        def never():
            yield b"--b\r\n"
            time.sleep(3)

        with server.client() as client:
            started_s = time.monotonic()
            answer = client.post(
                "/v1/predict", content=never(), headers={"Content-Type": "multipart/form-data; boundary=b"}
            )
        assert answer.status_code == 503
        assert "more than 0.3 s" in answer.json()["detail"]
        assert time.monotonic() - started_s < 10


def test_images_are_stored_if_that_is_switched_on_and_can_be_exported_for_labelling(
    starter, tmp_path, draw_tile, encode
):
    photo, tile = encode(draw_tile(0, size_px=512)), encode(draw_tile(1), "PNG")
    with Server(tmp_path / "on", starter=starter, kept_images_mb=10) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert predict(client, tile).status_code == 200
            assert client.post("/v1/map", files={"file": ("photo.jpg", photo)}).status_code == 200
    rows = PredictionLog(tmp_path / "on" / LOG_FOLDER).read()
    assert rows["source"].tolist() == ["predict", *["map"] * 4]
    assert Path(rows["path"][0]).read_bytes() == tile
    assert export(rows, tmp_path / "to-label") == 5
    assert len(find_images([tmp_path / "to-label"])) == 5


def test_no_image_is_stored_by_default_and_probabilities_are_logged_as_they_were_before_a_correction(
    starter, tmp_path, grey
):
    with Server(tmp_path, starter=starter) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert predict(client, grey(128), prevalence=0.1).status_code == 200
    rows = PredictionLog(tmp_path / LOG_FOLDER).read()
    assert rows["path"].isna().tolist() == [True]
    assert rows["probability"].tolist() == pytest.approx([0.5], abs=1e-5)
    assert [path.suffix for path in (tmp_path / LOG_FOLDER).iterdir()] == [".parquet"]


def test_reviews_go_to_the_inbox_with_a_marker(starter, tmp_path, draw_tile, encode):
    inbox = tmp_path / "inbox"
    with Server(tmp_path / "server", starter=starter, inbox=str(inbox)) as server:
        server.wait_until_ready()
        with server.client() as client, ThreadPoolExecutor(8) as pool:
            tiles = [{"file": 0, "x": 0, "y": 0, "size": 64, "label": "intact"}]
            answer = review(client, encode(draw_tile(0), "PNG"), tiles)
            tiles = [{"file": 0, "x": 0, "y": 0, "size": 64, "label": "crack"}]
            at_once = list(pool.map(lambda _: review(client, encode(draw_tile(1), "PNG"), tiles), range(16)))
        assert answer.status_code == 201
        assert {one.status_code for one in at_once} == {201}
        batches = {one.json()["batch"] for one in at_once}
        name = answer.json()["batch"]
        assert answer.json() == {"batch": name, "n_crack": 0, "n_intact": 1}
        expected = {f"{batch}.zip{suffix}" for batch in {name, *batches} for suffix in ("", ".done")}
        assert {path.name for path in inbox.iterdir()} == expected


def test_without_a_model_the_server_is_healthy_and_not_ready(tmp_path, grey):
    with Server(tmp_path) as server:
        server.wait_until(lambda client: client.get("/healthz").status_code == 200)
        with server.client() as client:
            for answer in (client.get("/readyz"), predict(client, grey(40))):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "There is no model yet" in answer.json()["detail"]


def test_a_port_in_use_is_an_error_with_advice(server, starter, tmp_path):
    port = server.url.rsplit(":", 1)[1]
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    command = [sys.executable, "-m", "serving", "--params", "params.yaml", "--port", port, "--starter", str(starter)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    reason = f"The server cannot listen on 127.0.0.1, port {port}: Address already in use."
    assert ended.stderr == f"error: {reason} Choose another: --host, --port.\n"


def test_an_answer_does_not_wait_for_an_acknowledgement(client, grey):
    took_s = []
    for _ in range(30):
        started_s = time.perf_counter()
        predict(client, grey(40))
        took_s.append(time.perf_counter() - started_s)
    assert min(took_s) < 0.035  # with Nagle's algorithm every one takes 40 ms
