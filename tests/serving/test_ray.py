"""The app on a local Ray with two replicas."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from http_client import Client

from fish_lightning.errors import UserError


@pytest.fixture(scope="module")
def ray_serve():
    """Ray Serve, on a free port, and a client of that."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    serve = pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield serve, Client(port)
    serve.shutdown()
    ray.shutdown()


def test_two_replicas_answer_as_one_server_does(ray_serve, server, trained, picture):
    from fish_lightning.serving.ray import app

    serve, client = ray_serve
    serve.run(app({"model": str(trained.folder), "replicas": "2", "trainer.accelerator": "cpu"}))
    (deployment,) = serve.status().applications["default"].deployments.values()
    assert deployment.replica_states == {"RUNNING": 2}
    files = [(f"{i}.png", picture(seed=i)) for i in range(8)]
    expected = [server.predict(file).json for file in files]
    assert len({str(answer["predictions"][0]["probabilities"]) for answer in expected}) == 8
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda i: client.predict(files[i % 8]).json, range(32)))
    for i, answer in enumerate(answers):
        (found,), (right,) = answer["predictions"], expected[i % 8]["predictions"]
        assert (found["file"], found["class"]) == (right["file"], right["class"])
        assert found["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)
    assert client.predict(("a.png", b"")).json["error"]["code"] == "unreadable_image"
    assert b'<script type="module" src="page/page.js">' in client.get("/").body


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"model": "x", "replicas": "none"}, "replicas=none: expected an integer of at least 1"),
        ({}, "ckpt is required: ckpt=FILE"),
        ({"model": "x", "serve.queue": "0"}, "serve.queue=0: expected an integer of at least 1"),
    ],
)
def test_settings_are_checked_before_anything_is_deployed(words, message):
    pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    from fish_lightning.serving.ray import app

    with pytest.raises(UserError, match=message):
        app(words)
