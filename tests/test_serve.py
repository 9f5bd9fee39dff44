"""``python -m fish_lightning.serve`` as a user starts and stops it."""

import os
import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers import is_short_error
from http_client import Client

from fish_lightning.errors import UserError
from fish_lightning.serve import serve

pytest.importorskip("fastapi", reason="the extra serve is not installed")


@contextmanager
def serving(start, model, cwd, *overrides):
    """A running program, which is ended by SIGTERM, and its client."""
    program = start("serve", f"model={model}", "port=0", "trainer.accelerator=cpu", *overrides, cwd=cwd)
    output, port, deadline = Path(program.folder.name, "out"), None, time.monotonic() + 120
    while port is None and time.monotonic() < deadline:
        time.sleep(0.02)
        port = re.search(r"^page  http://127\.0\.0\.1:(\d+)/$", output.read_text(), re.M)
    try:
        yield program, Client(int(port[1]))
    finally:
        with suppress(ProcessLookupError):
            os.kill(program.pid, signal.SIGTERM)


def test_sigterm_finishes_what_is_in_work(tmp_path, start, trained, make_image):
    files = [(f"{i}.png", make_image(tmp_path / "a.png", (9, 90, 9), i, (400, 600)).read_bytes()) for i in range(10)]
    (tmp_path / "here").mkdir()
    with serving(start, trained.folder, tmp_path / "here") as (program, client), ThreadPoolExecutor(4) as clients:
        assert client.predict(files[0]).status == 200
        answers = [clients.submit(client.predict, *files) for _ in range(4)]
        while "fish_lightning_requests_in_flight 4.0" not in client.get("/metrics").body.decode():
            assert not all(answer.done() for answer in answers)
        os.kill(program.pid, signal.SIGTERM)
        assert [len(answer.result().json["predictions"]) for answer in answers] == [10] * 4
        done = program.communicate(60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"serving {trained.folder}\n") or f"\nserving {trained.folder}\n" in done.stdout
    files = {file.name for file in (tmp_path / "here").rglob("*") if file.is_file()}
    assert files == {"config.yaml", "hydra.yaml", "overrides.yaml", "serve.log"}


def test_a_port_that_is_taken_is_one_line(tmp_path, run, trained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", f"model={trained.folder}", f"port={port}", cwd=tmp_path)
    assert is_short_error(done, f"error: port={port}: already in use")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["host=0.0.0.0"], "host=0.0.0.0: other machines could use this server, so it needs a token\nset one (serve."),
        (["host=10.9.8.7"], "needs a token"),
        (["host=no.such.host.invalid", "serve.token=x"], "host=no.such.host.invalid: cannot listen on it ("),
        (["host=203.0.113.9", "serve.token=x"], "host=203.0.113.9: cannot listen on it ("),
        (["serve.token=a b"], "serve.token=a b: expected text of ASCII characters"),
        (["trainer.max_epochs=1"], "trainer.max_epochs: no such setting of serve"),
        (["serve.max_request_bytes=999999999"], "expected at most serve.queue_bytes=256000000"),
        (["port=70000"], "port=70000: expected an integer in [0, 65535]"),
        (["model=gone"], "ckpt: no file gone/checkpoints/best.ckpt"),
        (["model=gone", "port=1"], "gone" if os.getuid() == 0 else "port=1: not allowed"),
    ],
)
def test_what_cannot_be_served_is_a_short_error(tmp_path, run, trained, words, message):
    (tmp_path / "gone").mkdir()
    given = words if any(word.startswith("model=") for word in words) else [f"model={trained.folder}", *words]
    assert is_short_error(run("serve", "port=0", *given, cwd=tmp_path), message)


def test_without_the_extra_the_command_that_installs_it_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "fish_lightning.serving.address", raising=False)
    with pytest.raises(UserError, match=r"requires the package uvicorn\npip install 'fish_lightning\[serve\]'"):
        serve(None)
