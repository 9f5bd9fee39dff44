"""Requests and answers: what predict would say, errors with their codes, nothing on disk."""

import base64
import http.client
import json
import re
import socket
import tempfile
import threading
import time
import zlib

import numpy as np
import pytest
from helpers import draw
from http_client import multipart

from fish_lightning.data.decoding import MAX_PIXELS, InMemory, TooManyPixels, UnreadableImage, decode

CLASSES = ["class a", "class b", "class c"]


def png_of(width, height):
    """A PNG of a few bytes that says to be of any size."""
    import struct

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(9)))]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def expected(trained):
    """``expected(content)``: probabilities of the classes of an image file, one at a time, by the model itself."""
    import torch

    from fish_lightning.models.trained import open_model

    model = open_model(trained.folder)

    def of(content):
        with torch.inference_mode():
            image = model.transform(image=decode(InMemory(content, "x")))["image"].unsqueeze(0)
            return dict(zip(model.module.class_names, model.module(image).softmax(1)[0].tolist(), strict=True))

    return of


def refused(response, status, code, *words):
    assert (response.status, response.json["error"]["code"]) == (status, code), response.body
    assert list(response.json) == ["error"] and list(response.json["error"]) == ["code", "message"]
    for word in words:
        assert word in response.json["error"]["message"]
    return True


def test_answers_are_those_of_predict_for_one_file_and_for_many(server, picture, expected, run, trained, tmp_path):
    files = [(f"{i}.png", picture((200, 30 * i, 60), i, size=(20 + i, 30))) for i in range(3)]
    for name, content in files:
        (tmp_path / name).write_bytes(content)
    done = run("predict", f"ckpt={trained.folder}", f"input={tmp_path}", "trainer=cpu", "num_workers=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("predictions.json")
    rows = {row["path"].rpartition("/")[2]: row for row in json.loads(file.read_text())}
    answers = server.predict(*files).json["predictions"]
    assert [answer["file"] for answer in answers] == [name for name, _ in files]
    for answer, (name, content) in zip(answers, files, strict=True):
        row = rows[name]
        assert answer["class"] == row["prediction"]
        for key in ("probability", "calibrated_probability", "probabilities"):
            assert answer[key] == pytest.approx(row[key], abs=1e-5)
        assert [answer["uncertain"], answer["unknown"]] == [row["uncertain"], row["unknown"]]
        assert answer["probabilities"] == pytest.approx(expected(content), abs=1e-5)
        assert list(answer["calibrated_probabilities"]) == list(answer["probabilities"])
        assert "heat_map" not in answer


def test_views_of_an_image_are_averaged(serve, picture, decided):
    import torch

    from fish_lightning.models.trained import open_model

    content = picture(seed=7)
    model = open_model(decided)
    image = model.transform(image=decode(InMemory(content, "x")))["image"].unsqueeze(0)
    with torch.inference_mode():
        views = [model.module(view) for view in (image, image.flip(3), image.flip(2), image.flip(2, 3))]
    expected = torch.stack(views).softmax(2).mean(0)[0].tolist()
    classes = model.module.class_names
    (answer,) = serve("tta=flips", ckpt=decided).predict(("a.png", content)).json["predictions"]
    assert [answer["probabilities"][name] for name in classes] == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(views[0].softmax(1)[0].tolist(), abs=1e-4)


def test_json_with_base64_gets_the_same_answer(server, picture):
    content = picture()
    files = [{"name": "a.png", "data": base64.b64encode(content).decode()}]
    answers = server.post("/predict", {"files": files})
    assert answers.status == 200 and answers.json == server.predict(("a.png", content)).json


def test_a_heat_map_is_a_picture_of_the_image_as_the_model_sees_it(server, picture):
    (answer,) = server.predict(("a.png", picture()), path="/predict?heat_map=true").json["predictions"]
    prefix, _, data = answer["heat_map"].partition(",")
    assert prefix == "data:image/png;base64" and decode(InMemory(base64.b64decode(data), "x")).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("make", "status", "code", "words"),
    [
        (lambda p: [("a.png", b"")], 422, "unreadable_image", ("file 1 (a.png): an empty file",)),
        (lambda p: [("a.png", b"GIF89a" + bytes(90))], 422, "unreadable_image", ("not an image (PNG, JPEG, WebP",)),
        (lambda p: [("", b"%!PS-Adobe-3.0 EPSF-3.0\n")], 422, "unreadable_image", ("file 1: not an image",)),
        (lambda p: [("ok.png", p()), ("cut.png", p()[:300])], 422, "unreadable_image", ("file 2 (cut.png): cannot",)),
        (lambda p: [("b.png", png_of(9_000, 9_000))], 413, "too_many_pixels", ("9000 x 9000", "50,000,000")),
        (lambda p: [("b.png", png_of(60_000, 60_000))], 413, "too_many_pixels", ("200 million",)),
        (lambda p: [("\x1b[31m\u202e.png", b"x")], 422, "unreadable_image", ("file 1",)),
        (lambda p: [(f"{i}", p()) for i in range(33)], 413, "too_many_files", ("32",)),
        (lambda p: [(f"{i}", b"") for i in range(2000)], 413, "too_many_files", ("32",)),
        (lambda p: [], 400, "no_files", ()),
    ],
)
def test_a_file_that_cannot_be_answered_is_refused_with_its_code(server, picture, make, status, code, words):
    response = server.predict(*make(picture))
    assert refused(response, status, code, *words)
    assert "\x1b" not in response.json["error"]["message"]


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("", b"", 415, "unsupported_media_type"),
        ("image/png", b"x", 415, "unsupported_media_type"),
        ("multipart/form-data", b"x", 400, "malformed_request"),
        ("multipart/form-data; boundary=b", b"no form", 400, "malformed_request"),
        ("multipart/form-data; boundary=b", b'--b\r\nX: "', 400, "no_files"),
        ("multipart/form-data; boundary=b", b"--b\r\nX: " + b"y" * 99_999, 400, "malformed_request"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--b--\r\n',
            400,
            "malformed_request",
        ),
        ("application/json", b"{", 400, "malformed_request"),
        ("application/json", b"[" * 100_000, 400, "malformed_request"),
        ("application/json", b"\xff", 400, "malformed_request"),
        ("application/json", b'{"files": 1}', 400, "malformed_request"),
        ("application/json", b'{"files": []}', 400, "no_files"),
        ("application/json", b'{"files": [1]}', 400, "malformed_request"),
        ("application/json", b'{"files": [{"data": "?"}]}', 400, "malformed_request"),
        ("application/json", b'{"files": [{"name": 1, "data": ""}]}', 400, "malformed_request"),
    ],
)
def test_a_malformed_request_is_one_json_error(server, content_type, body, status, code):
    assert refused(server.request("POST", "/predict", body, {"Content-Type": content_type}), status, code)


def test_other_paths_methods_and_parameters_are_json_errors_too(server, picture):
    assert refused(server.get("/nothing"), 404, "not_found")
    assert refused(server.get("/predict"), 405, "method_not_allowed")
    assert refused(server.predict(("a", picture()), path="/predict?heat_map=7"), 400, "malformed_request", "heat_map")
    assert refused(server.get("/page/../app.py"), 404, "not_found")


@pytest.fixture(scope="module")
def small(serve):
    """A server with small limits and a token."""
    return serve(
        *("serve.max_file_bytes=3000", "serve.max_request_bytes=9000", "serve.queue_bytes=12000", "serve.queue=2"),
        *("serve.token=secret", "serve.timeout=1.5", "serve.max_pixels=2000"),
    )


TOKEN = {"Authorization": "Bearer secret"}


def test_bytes_and_pixels_are_limited(small, picture):
    assert small.predict(("a.png", picture()), **TOKEN).status == 200
    assert refused(
        small.predict(("a.png", bytes(3001)), **TOKEN), 413, "file_too_large", "file 1 (a.png): more than 3,000 bytes"
    )
    assert refused(small.predict(("a.png", bytes(9001)), **TOKEN), 413, "request_too_large", "9,000")
    # Sent without a length, and more than a socket holds: the client still gets the answer.
    headers, body = multipart([("a.png", bytes(17_000))])
    parts = (body[at : at + 1000] for at in range(0, len(body), 1000))
    response = small.request("POST", "/predict", parts, headers | TOKEN)
    assert response.status == 413 and response.json["error"]["code"] in ("file_too_large", "request_too_large")
    image = picture(size=(40, 60), file_format="JPEG")
    assert refused(small.predict(("a.jpg", image), **TOKEN), 413, "too_many_pixels", "60 x 40 pixels are more than 2,0")


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}])
def test_without_the_token_only_page_health_and_documentation_answer(small, picture, given):
    pixels = {"inputs": []}
    name = small.get("/about", **TOKEN).json["name"]
    for response in (
        small.predict(("a.png", picture()), **given),
        small.get("/metrics", **given),
        small.get("/about", **given),
    ):
        assert refused(response, 401, "unauthorized") and response.headers["WWW-Authenticate"] == "Bearer"
    assert small.post(f"/v2/models/{name}/infer", pixels, **given).status == 401
    for path in ("/", "/health", "/docs", "/openapi.json", "/page/page.js"):
        assert small.get(path).status == 200


def held(client, count, size=4000):
    """Open requests that have not arrived completely."""
    connections = []
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        connection.putrequest("POST", "/predict")
        for name, value in (TOKEN | {"Content-Type": "application/json", "Content-Length": str(size)}).items():
            connection.putheader(name, value)
        connection.endheaders(b"{")
        connections.append(connection)
    return connections


def test_a_full_queue_refuses_with_503_and_slow_requests_end(small, picture):
    for _ in range(5):  # on a busy machine the time limit may end what is held before the next request arrives
        waiting, busy, deadline = held(small, 2), None, time.monotonic() + 1.4
        while (busy is None or busy.status != 503) and time.monotonic() < deadline:
            busy = small.predict(("a.png", picture()), **TOKEN)
        if busy.status == 503:
            break
    assert refused(busy, 503, "busy") and int(busy.headers["Retry-After"]) >= 1
    for connection in waiting:
        response = connection.getresponse()
        assert response.status == 408
        assert json.loads(response.read())["error"]["code"] == "slow_request"
        connection.close()
    assert small.predict(("a.png", picture()), **TOKEN).status == 200


def test_bytes_of_all_requests_are_limited(small, picture):
    for _ in range(5):  # as above
        (waiting,), response, deadline = held(small, 1, size=9000), None, time.monotonic() + 1.4
        while (response is None or response.status != 503) and time.monotonic() < deadline:
            response = small.predict(("a.png", bytes(4000)), **TOKEN)
        waiting.close()
        if response.status == 503:
            break
    assert refused(response, 503, "busy")


def test_a_client_that_goes_away_leaves_nothing(small, picture):
    for _ in range(5):  # as above
        for connection in held(small, 2):
            connection.close()
        response, deadline = None, time.monotonic() + 1.2  # before the time limit would end them
        while (response is None or response.status != 200) and time.monotonic() < deadline:
            response = small.predict(("a.png", picture()), **TOKEN)
        if response.status == 200:
            break
    assert response.status == 200
    metrics = small.get("/metrics", **TOKEN).body.decode()
    assert "fish_lightning_requests_in_flight 0.0" in metrics
    gone = re.search(r'requests_total{code="incomplete_request",path="/predict"} (\d)', metrics)
    assert gone and int(gone[1]) >= 2


def test_what_takes_too_long_is_refused(serve, picture, monkeypatch):
    from fish_lightning.serving.predictor import Predictor

    slow = threading.Event()
    decode_now = Predictor._decode
    monkeypatch.setattr(Predictor, "_decode", lambda *given: slow.wait(5) and decode_now(*given))
    client = serve("serve.timeout=0.3")
    response = client.predict(("a.png", picture()))
    slow.set()
    assert refused(response, 503, "timeout", "0.3 seconds") and response.headers["Retry-After"]


def test_nothing_uploaded_is_written_or_logged(server, picture, monkeypatch, capfd, caplog):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: pytest.fail("an upload is written to disk"))
    image = picture(size=(900, 1200), file_format="BMP")  # 3 MB: more than Starlette keeps in memory
    for name, content in (("holiday-secret.bmp", image), ("broken-secret.bmp", image[:99])):
        assert server.predict((name, content)).status in (200, 422)
    printed = capfd.readouterr()
    assert "secret" not in printed.out + printed.err + caplog.text


def test_a_bug_is_a_json_error_and_a_traceback_for_us(serve, picture, monkeypatch, caplog):
    from fish_lightning.serving.predictor import Predictor

    monkeypatch.setattr(Predictor, "_compute", lambda *_: 1 / 0)
    response = serve().predict(("secret.png", picture()))
    assert refused(response, 500, "internal_error")
    deadline = time.monotonic() + 5  # it is logged after the answer
    while "ZeroDivisionError" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    printed = caplog.text
    assert "ZeroDivisionError" in printed and "secret" not in printed and "Zero" not in response.body.decode()


def test_metrics_count_requests_images_and_batches(serve, picture):
    client = serve()
    client.predict(("a", picture()), ("b", picture()))
    client.predict(("a", b""))
    found = dict(re.findall(r"^(\w+(?:{[^}]*})?) ([\d.e+-]+)$", client.get("/metrics").body.decode(), re.M))
    assert found['fish_lightning_requests_total{code="ok",path="/predict"}'] == "1.0"
    assert found['fish_lightning_requests_total{code="unreadable_image",path="/predict"}'] == "1.0"
    assert found["fish_lightning_images_total"] == "2.0" and found["fish_lightning_batch_images_sum"] == "2.0"
    assert float(found["process_resident_memory_bytes"]) > 1e6


def test_documentation_describes_uploads_and_loads_nothing_from_elsewhere(server):
    schema = server.get("/openapi.json").json
    assert set(schema["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
    }
    assert "/v2/models/{model}/infer" in schema["paths"]
    page = server.get("/docs").body.decode()
    assert re.findall(r'(?:src|href)="([^"]+)"', page) and "//" not in "".join(
        re.findall(r'(?:src|href)="([^"]+)"', page)
    )


def test_content_in_memory_is_decoded_as_a_file_is(tmp_path):
    file = draw(tmp_path / "a.png", (90, 20, 10), 1)
    for name in ("upload", "s3://bucket/a.png", str(tmp_path / "absent.png")):  # a name is never followed
        assert np.array_equal(decode(InMemory(file.read_bytes(), name)), decode(file))
    with pytest.raises(UnreadableImage, match=r"^upload: an empty file$"):
        decode(InMemory(b"", "upload"))
    side = 2 * int(MAX_PIXELS**0.5)
    with pytest.raises(TooManyPixels, match=r"^upload: "):
        decode(InMemory(png_of(side, side), "upload"))


def test_a_client_that_waits_for_leave_to_send_is_refused_at_once(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        connection.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
